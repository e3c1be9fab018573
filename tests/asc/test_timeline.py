"""Windows of recordings: where they lie, and that each is heard as a file of its own would be."""

import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import network
from torch import Tensor

from asc import timeline
from asc.data import LogMelDataset, unlabelled
from asc.data.recordings import Recording
from asc.errors import UserError
from asc.model import Cnn6Sep
from asc.processes import Place
from asc.raw import RawFormat
from asc.scoring import predict
from asc.timeline import (
    STDIN,
    Failure,
    Found,
    Options,
    Windows,
    cut,
    predict_recordings,
)

Refused = Callable[..., AbstractContextManager[None]]
Wav = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Cnn6Sep:
    return network()


def heard(model: Cnn6Sep, paths: list[Path], *options: Any, **more: Any) -> list[Found | Failure]:
    found: list[Found | Failure] = []
    predict_recordings(model, paths, Options(*options), found.append, **more)
    return found


def predictions(found: list[Found | Failure]) -> list[Any]:
    assert all(isinstance(each, Found) for each in found)
    return [each.prediction for each in found if isinstance(each, Found)]


def recording(samples: Tensor, sizes: list[int], rate: int = 10) -> Recording:
    def blocks() -> Iterator[Tensor]:
        at = 0
        while at < len(samples):
            size = sizes[at % len(sizes)]
            yield samples[at : at + size]
            at += size

    return Recording("x", rate, blocks())


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 400),
    st.lists(st.integers(1, 50), min_size=1, max_size=4),
    st.floats(0.1, 8),
    st.floats(0.1, 12),
)
def test_windows_cover_the_recording(
    total: int, sizes: list[int], length: float, hop: float
) -> None:
    samples = torch.arange(total).float()
    found = list(cut(recording(samples, sizes), Windows(length, hop)))
    n, step = math.ceil(round(10 * length, 6)), 10 * hop
    for start, window in found:
        assert torch.equal(window, samples[start : start + n])
    starts = [start for start, _ in found]
    regular = [round(i * step) for i in range(total + 1) if round(i * step) + n <= total]
    assert starts[: len(regular)] == regular
    rest = starts[len(regular) :]
    if total < n:
        assert rest == [0] and len(found[0][1]) == total
    elif total - n - regular[-1] > 0.01 * n:
        assert rest == [total - n]  # the last one ends with the recording
    else:
        assert rest == []


def test_little_of_a_recording_is_held() -> None:
    """A window comes before what follows it is read."""
    read = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal read
        while True:
            read += 7
            yield torch.zeros(7)

    windows = cut(Recording("x", 10, blocks()), Windows(5, 2))
    for number in range(200):
        start, _ = next(windows)
        assert start == 20 * number and read <= start + 50 + 6


def test_windows_out_of_range(refused: Refused) -> None:
    for length, hop, part in (
        (0.01, 1, "--window must be from 0.1 to 60 s, got 0.01"),
        (61, 1, "--window"),
        (math.nan, 1, "--window"),
        (10, 0, "--hop must be from 0.01 to 3600 s, got 0"),
        (10, math.inf, "--hop"),
    ):
        with refused(part):
            Windows(length, hop)


def test_lengths_that_floats_do_not_hold() -> None:
    for tenths in range(1, 601):
        assert Windows(tenths / 10).frames(44_100) == 4410 * tenths
        assert Windows(tenths / 10).frames(11_025) == math.ceil(tenths * 11_025 / 10)
    assert Windows(10.3).samples == 454_230


def test_no_samples(refused: Refused) -> None:
    with refused("x: holds no audio samples"):
        list(cut(Recording("x", 10, iter(())), Windows()))


@pytest.mark.parametrize("length", [3.0, 10.0])
@pytest.mark.parametrize("rate", [44_100, 16_000])
def test_a_window_is_heard_as_a_file_of_its_own(
    model: Cnn6Sep, tmp_path: Path, rate: int, length: float
) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, (17 * rate, 2)) * np.linspace(0.1, 3, 17 * rate)[:, None]
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, samples, rate, "FLOAT")
    found = heard(model, [whole], Windows(length, 4.5))
    expected = [(4.5 * i, 4.5 * i + length) for i in range(math.floor((17 - length) / 4.5) + 1)]
    if length == 10:
        expected.append((7.0, 17.0))
    else:
        expected.append((14.0, 17.0))
    assert [(each.start, each.end) for each in found if isinstance(each, Found)] == expected
    files = []
    for start, end in expected:
        files.append(tmp_path / f"{start}.wav")
        part = samples[round(start * rate) : round(end * rate)]
        soundfile.write(files[-1], part, rate, "FLOAT")
    assert predictions(found) == predict(model, LogMelDataset(unlabelled(files)))
    assert predictions(found) == predictions(heard(model, files))
    labels = [each.level for each in found if isinstance(each, Found)]
    assert labels == sorted(labels) and labels[-1] > labels[0] + 5  # it becomes louder


def test_masks_follow_from_the_name_and_the_number(
    model: Cnn6Sep, tmp_path: Path, wav: Wav
) -> None:
    path = wav(tmp_path / "a.wav", seconds=10)
    samples, rate = soundfile.read(path)
    twice = tmp_path / "b" / "a.wav"
    twice.parent.mkdir()
    soundfile.write(twice, np.concatenate([samples, samples]), rate, "PCM_24")
    (alone,) = predictions(heard(model, [path], None, 0.0, 3, 7))
    first, second = predictions(heard(model, [twice], Windows(10, 10), 0.0, 3, 7))
    assert alone == first and alone.masks == 3
    assert second.logits == first.logits and second.probabilities != first.probabilities
    assert predict(model, LogMelDataset(unlabelled([path])), tta=3, seed=7) == [alone]


def test_what_is_said_of_a_clip(model: Cnn6Sep, tmp_path: Path, wav: Wav) -> None:
    paths = [wav(tmp_path / f"{t}.wav", seconds=t) for t in (2, 10, 10.05, 11)]
    found = heard(model, paths)
    facts = [(f.end, f.repeated, f.goes_on) for f in found if isinstance(f, Found)]
    assert facts == [(2, True, False), (10, False, False), (10, False, False), (10, False, True)]
    found = heard(model, [paths[0], paths[3]], Windows(5, 10))
    facts = [(f.end, f.repeated, f.goes_on) for f in found if isinstance(f, Found)]
    assert facts == [(2, True, False), (5, False, False), (11, False, False)]


@pytest.mark.parametrize("windows", [None, Windows()])
@pytest.mark.parametrize("tta", [0, 2])
def test_what_cannot_be_read_is_said_in_its_place(
    model: Cnn6Sep, tmp_path: Path, wav: Wav, windows: Windows | None, tta: int
) -> None:
    good = [wav(tmp_path / f"{i}.wav", 200 + i) for i in range(3)]
    missing, late = tmp_path / "missing.wav", tmp_path / "late.wav"
    samples = np.zeros(2_000_000)
    samples[-1] = math.nan
    soundfile.write(late, samples, 44_100, "FLOAT")
    paths = [good[0], missing, good[1], late, good[2]]
    found = heard(model, paths, windows, 0.0, tta)
    assert [each.path for each in found if not (each.path == late and isinstance(each, Found))] == [
        path for path in paths if path != late or windows
    ]
    failures = {each.path: each.message for each in found if isinstance(each, Failure)}
    assert failures.pop(missing) == f"{missing}: no such file"
    if windows:  # what comes before what is wrong has been heard; without, it is not looked at
        assert sum(each.path == late and isinstance(each, Found) for each in found) > 3
        assert "NaN" in failures.pop(late)
    assert not failures
    expected = predictions(heard(model, good, windows, 0.0, tta))
    assert predictions([f for f in found if f.path in good and isinstance(f, Found)]) == expected


def test_what_the_network_cannot_say_anything_of(
    model: Cnn6Sep, tmp_path: Path, wav: Wav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its batch are predicted all the same."""
    good, bad = wav(tmp_path / "good.wav"), wav(tmp_path / "bad.wav", 300)
    compute = timeline._Listener._logmel

    def broken(self: Any, path: Path, *rest: Any) -> tuple[Tensor, float]:
        logmel, level = compute(self, path, *rest)
        return (logmel * math.nan if path == bad else logmel), level

    monkeypatch.setattr(timeline._Listener, "_logmel", broken)
    one, failure, two = heard(model, [good, bad, good])
    assert one == two and isinstance(one, Found)
    assert isinstance(failure, Failure) and failure.path == bad
    assert failure.message.startswith(f"{bad}: ") and "not finite" in failure.message


def test_a_gain_is_that_of_the_samples(model: Cnn6Sep, tmp_path: Path) -> None:
    """Below the front end's floor too, where a log-mel does not tell any more."""
    samples = 1e-4 * np.random.default_rng(0).normal(0, 1, 441_000)
    loud, quiet, huge = (tmp_path / f"{i}.wav" for i in range(3))
    soundfile.write(loud, samples, 44_100, "FLOAT")
    soundfile.write(quiet, samples / 2**10, 44_100, "FLOAT")
    soundfile.write(huge, samples * 1e17, 44_100, "FLOAT")
    (expected,) = heard(model, [loud])
    found, failure = heard(model, [quiet, huge], None, 20 * math.log10(2**10))
    (without,) = heard(model, [quiet])
    assert isinstance(expected, Found) and isinstance(found, Found) and isinstance(without, Found)
    logits = expected.prediction.logits
    assert found.prediction.logits == pytest.approx(logits, rel=1e-4, abs=1e-4)
    assert without.prediction.logits != pytest.approx(logits, rel=1e-2, abs=1e-2)
    assert found.level == pytest.approx(expected.level, abs=1e-3)
    assert isinstance(failure, Failure) and "too large for a gain of 60.2 dB" in failure.message


class Live(io.BytesIO):
    """A pipe into which a tenth of a second of samples at a time is written."""

    read = 0  # type: ignore[assignment]

    def read1(self, size: int | None = -1) -> bytes:
        came = super().read1(2 * 4410)
        self.read += len(came) // 2
        return came


def test_a_stream_is_not_waited_for(model: Cnn6Sep, tmp_path: Path, wav: Wav) -> None:
    path = wav(tmp_path / "a.wav", seconds=17)
    samples, rate = soundfile.read(path, dtype="int16")
    stream, said = Live(samples.tobytes()), []

    def each(found: Found | Failure) -> None:
        assert isinstance(found, Found)
        said.append((found.start, found.end, stream.read / rate, found.prediction))

    raw = RawFormat(rate, 1, "s16le")
    predict_recordings(model, [STDIN], Options(), each, stream=stream, raw=raw)
    starts, ends, when, found = zip(*said, strict=True)
    assert starts == (0, 5, 7) and ends == (10, 15, 17)  # in windows without being asked to
    assert when == pytest.approx((10, 15, 17), abs=0.11)
    soundfile.write(path, samples, rate, "PCM_16")
    assert list(found) == predictions(heard(model, [path], Windows()))


def test_a_stream_that_is_none(model: Cnn6Sep, wav: Wav, tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav")
    found, failure = heard(model, [STDIN, path], stream=io.BytesIO(b"nothing of ours"))
    assert isinstance(found, Found) and found.path == path  # files come first
    assert isinstance(failure, Failure) and "not WAV" in failure.message
    with pytest.raises(UserError, match="--devices 1"):
        heard(model, [STDIN, path], devices=2, stream=io.BytesIO())


def test_processes_find_what_one_finds_in_the_same_order(
    model: Cnn6Sep, tmp_path: Path, wav: Wav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is first; that processes can be started for it, the tests of the command show."""
    paths = [wav(tmp_path / f"{i}.wav", 200 + 40 * i) for i in range(14)]
    paths.insert(2, tmp_path / "missing.wav")
    one = heard(model, paths, None, 0.0, 2)
    assert len(one) == 15
    shared: list[list[Path]] = []

    def run(work: Any, arguments: list[Any], advance: Callable[[Any], None]) -> None:
        shared.extend(each[1] for each in arguments)
        for rank in (1, 2, 0):
            work(Place(rank, 3, rank, 3), advance, *pickle.loads(pickle.dumps(arguments[rank])))

    monkeypatch.setattr(timeline, "run", run)
    assert heard(model, paths, None, 0.0, 2, devices=3) == one
    assert [len(each) for each in shared] == [6, 6, 3]  # whole batches


def test_what_each_raises_ends_it(model: Cnn6Sep, tmp_path: Path, wav: Wav) -> None:
    said: list[Any] = []

    def each(found: Found | Failure) -> None:
        said.append(found)
        raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        predict_recordings(model, [wav(tmp_path / "a.wav")] * 9, Options(), each)
    assert len(said) == 1


def test_memory_does_not_grow_with_the_recording(model: Cnn6Sep, tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 44_100, 1, "PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros(60 * 44_100, np.int16))  # 211 MB as float32, in all
    sizes: list[int] = []

    def each(found: Found | Failure) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(4096 * pages)

    predict_recordings(model, [path], Options(Windows(10, 30)), each)
    assert len(sizes) == 41
    assert max(sizes) - sizes[0] < 60e6
