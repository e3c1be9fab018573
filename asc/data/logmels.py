"""Log-mels of a whole clip list, computed once, in memory or in a cache on disk."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import fastsep
from asc.compute import send
from asc.data.audio import load_clip
from asc.data.cache import Marks, Rows, filled
from asc.data.clips import ClipList
from asc.errors import UserError
from asc.features import LogMel
from asc.progress import tracked
from asc.task import CLIP_SAMPLES, FRAMES, HOP, N_FFT, N_MELS, SAMPLE_RATE
from asc.threads import in_threads

# What the cached numbers depend on besides the audio; raise the first when the code changes them.
_SETTINGS = (3, SAMPLE_RATE, CLIP_SAMPLES, N_MELS, N_FFT, HOP, torch.__version__)
_BYTES = 4 * FRAMES * N_MELS  # of a clip

_MUCH = 5e8  # bytes worth a word
_MOST = 1e9  # bytes that memory is taken for unasked


class LogMelDataset(Dataset[tuple[Tensor, int]]):
    """Items (logmel, label): (1, 431, 256) float32 in dB, and the label, -1 if unknown.

    Every clip is fitted to 10 s (`asc.data.load_clip`), its log-mel computed once, by all cores.

    The cache is one float32 `.npy` file (clips, 431, 256) per clip list, 441 kB a clip, read
    through a memory map (float16 would round quiet bins by up to 0.03 dB). Its name is a hash of
    the clips' paths. What was computed of files of another size or time, with other settings of the
    front end, by another PyTorch or on another kind of device is computed anew, the rest is kept:
    see `asc.data.cache`.

    Args:
        clips: the clips.
        cache: folder for the cache, made if missing; None keeps the log-mels in memory.
        device: where to compute; the log-mels are kept on the CPU.

    Raises:
        UserError: audio that cannot be read, a cache folder that cannot be written or has too
            little room.
    """

    def __init__(
        self, clips: ClipList, cache: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.clips = clips
        self._labels = torch.tensor([-1 if label is None else label for label in clips.labels])
        self._cache, self._device = cache, torch.device(device)
        self._logmels = self._opened()

    @property
    def names(self) -> list[str]:
        """The clips' file names without folders, from which their TTA masks follow."""
        return [clip.path.name for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._logmels[index].clone(), int(self._labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch (N, 1, 431, 256) and its labels (N,), in one copy from memory or the map."""
        chosen = torch.tensor(indices)
        return self._logmels.index_select(0, chosen), self._labels[chosen]

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would be the whole array: spawned workers open the file themselves.
        state = self.__dict__.copy()
        if self._cache is not None:
            del state["_logmels"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._cache is not None:
            self._logmels = self._opened()

    def _opened(self) -> Tensor:
        """(clips, 1, 431, 256), computed where that is needed."""
        clips, front_end = self.clips, LogMel().to(self._device)

        def compute(index: int) -> Rows:
            return clip_logmel(front_end, clips[index].path, self._device)[0].numpy()

        if self._cache is None or not len(clips):
            return torch.from_numpy(_in_memory(len(clips), compute)).unsqueeze(1)
        path, marks = _identity(clips, self._cache, self._device.type)
        try:
            rows = filled(path, marks, (FRAMES, N_MELS), compute, "log-mels")
        except OSError as error:
            raise UserError(
                f"{path}: cannot write the log-mel cache ({error.strerror or error}); another "
                "folder for it: --cache FOLDER"
            ) from error
        return torch.from_numpy(rows).unsqueeze(1)


def clip_logmel(front_end: LogMel, path: Path, device: torch.device) -> Tensor:
    """The log-mel of the first 10 s of a file: (1, 431, 256) on the CPU.

    front_end: on the device where to compute.
    """
    return front_end(send(load_clip(path), device))[0].cpu()


def user_cache() -> Path:
    """The folder of what is kept of our own accord: `asc` among the user's caches."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "asc")


def choose_cache(clips: int, asked: Path | None = None) -> Path | None:
    """The folder to keep the log-mels of so many clips in; None for memory.

    It is the one asked for, or without one, where they would take more than 1 GB, that of the
    user's caches (XDG_CACHE_HOME, ~/.cache). Says so then.
    """
    size = clips * _BYTES
    if asked is not None or size <= _MOST:
        return asked
    folder = user_cache()
    print(
        f"asc: the log-mels of {clips} clips, {size / 1e9:.1f} GB, are kept in {folder} "
        "(--cache FOLDER: elsewhere)",
        file=sys.stderr,
    )
    return folder


def _in_memory(clips: int, compute: Callable[[int], Rows]) -> Rows:
    if clips * _BYTES >= _MUCH:
        print(
            f"asc: the log-mels of {clips} clips take {clips * _BYTES / 1e9:.1f} GB of memory; "
            "with a cache (--cache FOLDER) they stay on disk",
            file=sys.stderr,
        )
    rows = np.empty((clips, FRAMES, N_MELS), dtype=np.float32)

    def write(index: int) -> None:
        rows[index] = compute(index)

    with in_threads(write, range(clips)) as written:
        for _ in tracked(written, "log-mels", total=clips):
            pass
    return rows


def _identity(clips: ClipList, folder: Path, device: str) -> tuple[Path, Marks]:
    """The file for these clips, and for each a mark of what its log-mel depends on."""
    names, marks = hashlib.sha256(), []
    kernels = fastsep.backends()["cpu"].available  # whose last bits are not plain PyTorch's
    for clip in clips:
        path, *of_file = clip.state()
        names.update(path + b"\0")
        content = repr((*_SETTINGS, device, kernels, *of_file)).encode()
        marks.append(int.from_bytes(hashlib.sha256(content).digest()[:8]))
    return folder / f"logmels-{names.hexdigest()[:16]}.npy", np.array(marks, dtype=np.uint64)
