"""What a network hears in recordings of any length: one clip of each, or window by window."""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from asc.compute import Engine, Precision, send
from asc.data.audio import fit_length, is_longer, read_audio, resampled
from asc.data.pipe import open_pipe
from asc.data.recordings import Recording, open_recording
from asc.errors import UserError, note
from asc.features import LogMel, is_bounded
from asc.level import Gain, gain_of, level
from asc.prediction import MAX_BATCH_BYTES, Network, Until, batch_size, computing
from asc.processes import Place, run, shares
from asc.progress import quiet
from asc.raw import RawFormat
from asc.scoring import Prediction, predict
from asc.task import CLIP_SAMPLES, HOP, SAMPLE_RATE
from asc.threads import thread_pool

STDIN = Path("-")
SHORTEST, LONGEST = 0.1, 60.0  # seconds of a window: the network's memory grows with them
_CLIP = CLIP_SAMPLES / SAMPLE_RATE
_REST = 0.01  # of a window: so much more of a recording is not worth one, or a word
_AHEAD = 16  # windows whose log-mels are computed while the network is at others


@dataclass(frozen=True)
class Windows:
    """Parts of a recording: of `length` seconds each, the next begins `hop` seconds later.

    The last one ends with the recording, if that adds 1 % of a window; a recording that is shorter
    than a window is one.

    Raises:
        UserError: out of range.
    """

    length: float = _CLIP
    hop: float = _CLIP / 2

    def __post_init__(self) -> None:
        for name, value, least in (("window", self.length, SHORTEST), ("hop", self.hop, 0.01)):
            most = LONGEST if name == "window" else 3600.0
            if not least <= value <= most:
                raise UserError(f"--{name} must be from {least:g} to {most:g} s, got {value:g}")

    @property
    def samples(self) -> int:
        """Of what goes through the network: at least a clip's, so short windows are repeated."""
        return max(CLIP_SAMPLES, self.frames(SAMPLE_RATE))

    def frames(self, rate: int) -> int:
        """Of a window at a rate; 10.3 s of 44.1 kHz are 454 230, not what floats make of it."""
        return math.ceil(round(self.length * rate, 6))


@dataclass(frozen=True)
class Options:
    """How to predict; see `asc.prediction.probabilities` and `asc.level`.

    windows: None: of each file its first 10 s are a clip, and nothing else is looked at.
    """

    windows: Windows | None = None
    gain: Gain = 0.0
    tta: int | Until = 0
    seed: int = 0
    engine: Engine = "shared"
    device: torch.device | str = "cpu"
    precision: Precision = "float32"


@dataclass(frozen=True)
class Heard:
    """A window of a recording, on its way: number counts its recording's; start, end in seconds.

    logmel: (1, T, 256) under the gain, of that level in dB.
    repeated: whether the recording was too short. goes_on: whether it was too long to be heard.
    """

    path: Path
    number: int
    start: float
    end: float
    logmel: Tensor
    level: float
    repeated: bool = False
    goes_on: bool = False

    @property
    def name(self) -> str:
        """What its TTA masks follow from: the file's name and, from the second on, its number."""
        return self.path.name if self.number == 0 else f"{self.path.name}:{self.number}"


@dataclass(frozen=True)
class Found:
    """What was heard in a window: `Heard` without the log-mel, and the prediction."""

    path: Path
    number: int
    start: float
    end: float
    level: float
    repeated: bool
    goes_on: bool
    prediction: Prediction


@dataclass(frozen=True)
class Failure:
    """A recording that could not be read, or not to its end."""

    path: Path
    message: str


_Job: TypeAlias = Callable[[], Heard | Failure]


def cut(recording: Recording, windows: Windows) -> Iterator[tuple[int, Tensor]]:
    """The windows of a recording as it comes: (first frame, (n,) samples at its own rate).

    Raises:
        UserError: a recording without samples, or what its blocks raise.
    """
    length, step = windows.frames(recording.rate), windows.hop * recording.rate
    held, begin = torch.empty(0), 0  # the frames from `begin` on that may still be needed
    number, start, last = 0, 0, -1
    for block in recording.blocks:
        held = torch.cat([held, block])
        while begin + len(held) >= start + length:
            yield start, held[start - begin : start - begin + length].clone()
            number, last = number + 1, start
            start = round(number * step)
        drop = max(0, min(start, begin + len(held) - length) - begin)
        held, begin = held[drop:], begin + drop
    end = begin + len(held)
    if end == 0:
        raise UserError(f"{recording.name}: holds no audio samples")
    final = max(0, end - length)
    if last < 0 or final - last > _REST * length:
        yield final, held[final - begin :]


def predict_recordings(
    model: Network,
    paths: Sequence[Path],
    options: Options,
    each: Callable[[Found | Failure], None],
    *,
    devices: int = 1,
    stream: BinaryIO | None = None,
    raw: RawFormat | None = None,
) -> None:
    """Names the scene of files, and of their windows, in their order and as they come.

    A window's log-mel is that of its samples as a file of their own, resampled by themselves. What
    is heard of a long recording is never held as a whole.

    Args:
        model: folded.
        paths: files; `-` is the stream, which comes last, always in windows, none waited for.
        each: is given what is found; what it raises ends the work.
        devices: processes that share the files, with a GPU each on "cuda", started here.
        stream, raw: see `asc.data.pipe.open_pipe`.

    Raises:
        ValueError, UserError: bad arguments; a process was killed.
        KeyboardInterrupt: on Ctrl-C; all processes are gone then.
    """
    count = max(1, min(devices, len(paths)))
    if count == 1:
        with closing(_found(model, paths, options, options.device, stream, raw)) as everything:
            for found in everything:
                each(found)
        return
    if STDIN in paths:
        raise UserError("standard input cannot be shared by processes: --devices 1")
    waiting: list[list[Found | Failure | None]] = [[] for _ in range(count)]
    first = 0  # the process whose turn it is

    def came(message: tuple[int, Found | Failure | None]) -> None:
        nonlocal first
        waiting[message[0]].append(message[1])
        while first < count and waiting[first]:
            found = waiting[first].pop(0)
            if found is None:
                first += 1
            else:
                each(found)

    # Files that are a clip each in whole batches, on whose size last bits may depend on GPUs.
    parts = shares(len(paths), count, 1 if options.windows else _batch(options))
    work = [(model, [paths[i] for i in part], options) for part in parts]
    run(_share, work, advance=came)


def _share(
    place: Place, say: Callable[[Any], None], model: Network, paths: list[Path], options: Options
) -> None:
    """What one of several processes does: it says its rank and what it finds, None at the end."""
    device = options.device
    if device == "cuda":
        device = f"cuda:{place.local_rank}"
    for found in _found(model, paths, options, device):
        say((place.rank, found))
    say((place.rank, None))


def _batch(options: Options) -> int:
    """Windows that go through the network at once."""
    samples = options.windows.samples if options.windows else CLIP_SAMPLES
    return batch_size(1 + samples // HOP, MAX_BATCH_BYTES)


def _found(
    model: Network,
    paths: Sequence[Path],
    options: Options,
    device: torch.device | str,
    stream: BinaryIO | None = None,
    raw: RawFormat | None = None,
) -> Generator[Found | Failure, None, None]:
    """By one process; the stream comes after the files."""
    size = _batch(options)
    if options.tta:  # masked clips go through a thread each
        size *= math.ceil(torch.get_num_threads() / size)
    with (
        quiet(),  # what is printed as it comes is progress enough
        thread_pool() as pool,
        computing(model, device, options.precision) as (network, where),
    ):
        listener = _Listener(options, where, model.level)
        batch: list[Heard] = []
        for heard in _ahead(pool, listener.files(path for path in paths if path != STDIN)):
            if isinstance(heard, Heard):
                batch.append(heard)
            if isinstance(heard, Failure) or len(batch) == size:
                yield from _predicted(network, batch, options)
                batch = []
            if isinstance(heard, Failure):
                yield heard
        yield from _predicted(network, batch, options)
        if STDIN in paths:
            assert stream is not None
            for job in listener.windows(STDIN, lambda: nullcontext(open_pipe(stream, raw))):
                begun = time.monotonic()
                heard = job()
                if isinstance(heard, Failure):
                    yield heard
                else:
                    yield from _predicted(network, [heard], options)
                if time.monotonic() - begun > (options.windows or Windows()).hop:
                    note(
                        "standard input: a window takes longer than it is to the next; what "
                        "records and cannot wait loses samples (a longer --hop, or fewer --tta)"
                    )


class _Listener:
    """Makes jobs for threads: read what has not been read yet, compute a log-mel."""

    def __init__(self, options: Options, device: torch.device, expected: float | None) -> None:
        self._windows, self._gain, self._expected = options.windows, options.gain, expected
        self._device, self._front_end = device, LogMel().to(device)

    def files(self, paths: Iterable[Path]) -> Iterator[_Job]:
        for path in paths:
            if self._windows is None:
                yield partial(self._clip, path)
            else:
                yield from self.windows(path, partial(open_recording, path))

    def windows(
        self, path: Path, opened: Callable[[], AbstractContextManager[Recording]]
    ) -> Iterator[_Job]:
        """A recording's, in windows of 10 s if nothing else is asked for."""
        windows = self._windows or Windows()
        try:
            with opened() as recording:
                for number, (start, samples) in enumerate(cut(recording, windows)):
                    yield partial(
                        self._window, path, number, start, samples, recording.rate, windows
                    )
        except UserError as error:
            yield partial(Failure, path, str(error))

    def _clip(self, path: Path) -> Heard | Failure:
        try:
            waveform = read_audio(path, max_seconds=_CLIP)
            goes_on = is_longer(path, (1 + _REST) * _CLIP)
            heard = self._logmel(path, waveform, CLIP_SAMPLES)
        except UserError as error:
            return Failure(path, str(error))
        short = len(waveform) < CLIP_SAMPLES
        return Heard(path, 0, 0.0, len(waveform) / SAMPLE_RATE, *heard, short, goes_on)

    def _window(
        self, path: Path, number: int, start: int, samples: Tensor, rate: int, windows: Windows
    ) -> Heard | Failure:
        short = len(samples) < windows.frames(rate)
        try:
            heard = self._logmel(path, resampled(samples, rate), windows.samples)
        except UserError as error:
            return Failure(path, str(error))
        return Heard(path, number, start / rate, (start + len(samples)) / rate, *heard, short)

    def _logmel(self, path: Path, waveform: Tensor, samples: int) -> tuple[Tensor, float]:
        """As the network gets it, and its level."""
        waveform = send(fit_length(waveform, samples), self._device)
        logmel = self._front_end(waveform)[0].cpu()
        gain = gain_of(logmel, self._gain, self._expected)
        if gain:
            waveform = waveform * 10 ** (gain / 20)
            if not is_bounded(waveform):
                raise UserError(f"{path}: holds samples too large for a gain of {gain:.1f} dB")
            logmel = self._front_end(waveform)[0].cpu()
        return logmel, level(logmel)


def _ahead(pool: ThreadPoolExecutor, jobs: Iterable[_Job]) -> Iterator[Heard | Failure]:
    """What the jobs return, in their order; some are done ahead."""
    begun: deque[Future[Heard | Failure]] = deque()
    for job in jobs:
        begun.append(pool.submit(job))
        if len(begun) > _AHEAD:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class _Batch(list[tuple[Tensor, int]]):
    """`LogMelItems` of what was heard."""

    def __init__(self, heard: Sequence[Heard]) -> None:
        super().__init__((each.logmel, -1) for each in heard)
        self.names = [each.name for each in heard]


def _predicted(
    network: Network, batch: Sequence[Heard], options: Options
) -> Iterator[Found | Failure]:
    try:
        predictions = predict(
            network,
            _Batch(batch),
            tta=options.tta,
            seed=options.seed,
            engine=options.engine,
            precision=options.precision,
        )
    except UserError as error:  # of one of them
        if len(batch) == 1:
            yield Failure(batch[0].path, f"{batch[0].path}: {error}")
        else:
            for heard in batch:
                yield from _predicted(network, [heard], options)
        return
    for heard, prediction in zip(batch, predictions, strict=True):
        yield Found(
            heard.path,
            heard.number,
            heard.start,
            heard.end,
            heard.level,
            heard.repeated,
            heard.goes_on,
            prediction,
        )
