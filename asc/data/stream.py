"""Log-mels of a clip list that are computed as they are asked for, and never all held."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from asc.data.clips import ClipList
from asc.data.logmels import LogMelDataset, clip_logmel
from asc.features import LogMel
from asc.threads import thread_pool

_AHEAD = 16  # clips: a batch and what keeps the cores busy while it is in the network; 7 MB


class LogMelStream(Dataset[tuple[Tensor, int]]):
    """The items of a `LogMelDataset`, computed when they are asked for.

    Threads of a pool read and transform the clips that follow, so that this goes on while the
    network computes; gone through in order, each is computed once. What is wrong with a clip is
    raised when it is asked for. Not for several threads; in another process, to which it can be
    sent, it has a pool of its own.

    Args:
        clips: the clips.
        pool: of `asc.threads.thread_pool`.
        device: where to compute; the log-mels come to the CPU.
    """

    def __init__(
        self, clips: ClipList, pool: ThreadPoolExecutor, device: torch.device | str = "cpu"
    ) -> None:
        self.clips = clips
        self._pool, self._device = pool, torch.device(device)
        self._front_end = LogMel().to(self._device)
        self._begun: dict[int, Future[Tensor]] = {}
        self.kept: ExitStack | None = None  # what ends when nobody has the stream any more

    def __reduce__(self) -> tuple[Any, ...]:
        return _stream_of, (self.clips, self._device)

    @property
    def names(self) -> list[str]:
        """The clips' file names without folders, from which their TTA masks follow."""
        return [clip.path.name for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self))[index]
        wanted = range(index, min(index + 1 + _AHEAD, len(self)))
        for other in self._begun.keys() - set(wanted):
            self._begun.pop(other).cancel()
        for other in wanted:
            if other not in self._begun:
                self._begun[other] = self._pool.submit(self._compute, other)
        label = self.clips[index].label
        # By NumPy: PyTorch's threads would wait for each other, as those of the pool are at work.
        logmel = torch.from_numpy(self._begun[index].result().numpy().copy())
        return logmel, -1 if label is None else label

    def _compute(self, index: int) -> Tensor:
        return clip_logmel(self._front_end, self.clips[index].path, self._device)


def _stream_of(clips: ClipList, device: torch.device) -> LogMelStream:
    """In another process."""
    kept = ExitStack()
    stream = LogMelStream(clips, kept.enter_context(thread_pool()), device)
    stream.kept = kept  # the pool ends with the stream
    return stream


@contextmanager
def open_logmels(
    clips: ClipList, cache: Path | None = None, device: torch.device | str = "cpu"
) -> Iterator[LogMelDataset | LogMelStream]:
    """Log-mels to go through in order: of a cache, if there is to be one, else a stream.

    Args:
        clips, device: as of `LogMelDataset`.
        cache: folder that keeps the log-mels; None: memory for a few of them, for any number of
            clips.

    Raises:
        UserError: as `LogMelDataset`, with a cache here, without when a clip is asked for.
    """
    if cache is not None:
        yield LogMelDataset(clips, cache, device)
        return
    with thread_pool() as pool:
        yield LogMelStream(clips, pool, device)
