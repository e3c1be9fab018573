"""Log-mels of a whole clip list, computed once and kept on disk."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from asc.compute import send
from asc.data.audio import load_clip
from asc.data.clips import ClipList
from asc.errors import UserError
from asc.features import LogMel
from asc.files import atomic, make_folder
from asc.progress import tracked
from asc.task import CLIP_SAMPLES, FRAMES, HOP, N_FFT, N_MELS, SAMPLE_RATE

# What the cached numbers depend on besides the audio; raise the first when the code changes them.
_SETTINGS = (1, SAMPLE_RATE, CLIP_SAMPLES, N_MELS, N_FFT, HOP)


_MUCH = 5e8  # bytes


class LogMelDataset(Dataset[tuple[Tensor, int]]):
    """Items (logmel, label): (1, 431, 256) float32 in dB, and the label, -1 if unknown.

    Every clip is fitted to 10 s (`asc.data.load_clip`), its log-mel computed once.

    The cache is one float32 `.npy` file (clips, 431, 256) per clip list, 441 kB a clip, read
    through a memory map (float16 would round quiet bins by up to 0.03 dB). Its name holds a hash of
    the file names and one of their sizes, times and the feature settings: changed audio makes a
    new file, which replaces the old one. It is written under a temporary name and renamed when
    complete; a file that is damaged is computed anew.

    Args:
        clips: the clips.
        cache: folder for the cache, made if missing; None keeps the log-mels in memory.
        device: where to compute; the log-mels are kept on the CPU.

    Raises:
        UserError: audio that cannot be read (nothing is left behind), a cache folder that cannot
            be written.
    """

    def __init__(
        self, clips: ClipList, cache: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.clips = clips
        self._path: Path | None = None
        if cache is None:
            _say_memory(len(clips))
            self._logmels = np.empty((len(clips), FRAMES, N_MELS), dtype=np.float32)
            for row, logmel in zip(self._logmels, _compute(clips, device), strict=True):
                row[:] = logmel
        else:
            self._path, stale = _cache_path(clips, cache)
            try:
                self._logmels = _open(self._path, len(clips))
            except Exception:  # not there, or damaged: numpy then raises one of many types
                _write(self._path, clips, device)
                self._logmels = _open(self._path, len(clips))
            for path in stale:
                with contextlib.suppress(OSError):
                    path.unlink()

    @property
    def names(self) -> list[str]:
        """The clips' file names without folders, from which their TTA masks follow."""
        return [clip.path.name for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.clips[index].label
        logmel = torch.from_numpy(np.array(self._logmels[index]))  # a copy: the map is read-only
        return logmel.unsqueeze(0), -1 if label is None else label

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would be the whole array: spawned workers open the file themselves.
        state = self.__dict__.copy()
        if self._path is not None:
            del state["_logmels"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._path is not None:
            self._logmels = _open(self._path, len(self.clips))


def _say_memory(clips: int) -> None:
    """Says on stderr how much memory the log-mels of so many clips take, where it is much."""
    size = 4 * clips * FRAMES * N_MELS
    if size >= _MUCH:
        print(
            f"asc: the log-mels of {clips} clips take {size / 1e9:.1f} GB of memory; "
            "with a cache (--cache FOLDER) they stay on disk",
            file=sys.stderr,
        )


def _compute(clips: ClipList, device: torch.device | str) -> Iterator[NDArray[np.float32]]:
    """Log-mels (431, 256) one by one, under a progress bar."""
    logmel = LogMel().to(device)
    for clip in tracked(clips.clips, "log-mels"):
        yield logmel(send(load_clip(clip.path), device))[0, 0].cpu().numpy()


def _cache_path(clips: ClipList, folder: Path) -> tuple[Path, list[Path]]:
    """The file for these clips as they are now, and files of the same clips as they were."""
    names, contents = hashlib.sha256(), hashlib.sha256(repr(_SETTINGS).encode())
    for clip in clips:
        path = clip.path.absolute()
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{clip.path}: cannot be read ({error.strerror or error})") from error
        names.update(os.fsencode(path) + b"\0")
        contents.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    prefix = f"logmels-{names.hexdigest()[:16]}-"
    path = folder / f"{prefix}{contents.hexdigest()[:16]}.npy"
    return path, [other for other in folder.glob(f"{prefix}*.npy") if other != path]


def _open(path: Path, clips: int) -> NDArray[np.float32]:
    """A cache, memory-mapped; ValueError if it is not a complete cache of so many clips."""
    logmels: NDArray[np.float32] = npy.open_memmap(path, mode="r")
    if logmels.shape != (clips, FRAMES, N_MELS) or logmels.dtype != np.float32:
        raise ValueError(f"{path}: not a log-mel cache of {clips} clips")
    return logmels


def _write(path: Path, clips: ClipList, device: torch.device | str) -> None:
    header = {
        "descr": npy.dtype_to_descr(np.dtype(np.float32)),
        "fortran_order": False,
        "shape": (len(clips), FRAMES, N_MELS),
    }
    try:
        make_folder(path.parent)
        # Plain writes, not a writable map: a full disk then raises instead of killing the process.
        with atomic(path) as file:
            npy.write_array_header_1_0(file, header)
            for logmel in _compute(clips, device):
                file.write(np.ascontiguousarray(logmel).tobytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the log-mel cache ({error.strerror or error})"
        ) from error
