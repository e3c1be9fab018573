"""Recordings of any length, read block by block: files, and what comes through a pipe."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import soundfile
from torch import Tensor

from asc.data.audio import UNKNOWN, as_mono, check_rate, note_cut, read_streamed, reading

_BLOCK = 2**17  # frames read at once: 3 s


@dataclass(frozen=True)
class Recording:
    """A recording as it comes, once.

    name: for messages. rate: in Hz. blocks: (n,) float32, channels averaged, of any lengths above
    0; an error in what they are made of is a UserError when their turn comes.
    """

    name: str
    rate: int
    blocks: Iterator[Tensor]


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """The recording in a file, of which never more than a block is held.

    Its samples are those of `asc.data.read_audio` before that resamples them.

    Raises:
        UserError: as `read_audio`, now or when a block's turn comes.
    """
    with reading(path):  # bytes: soundfile encodes strings, which not all names and locales allow
        file = soundfile.SoundFile(os.fsencode(path))
    with file:
        check_rate(path, file.samplerate)
        note_cut(path, file.extra_info)
        yield Recording(str(path), file.samplerate, _blocks(path, file))


def _blocks(path: Path, file: soundfile.SoundFile) -> Iterator[Tensor]:
    streamed = file.frames == UNKNOWN
    while True:
        with reading(path):
            if streamed:
                frames = read_streamed(file, _BLOCK)
            else:
                frames = file.read(_BLOCK, dtype="float32", always_2d=True)
        if len(frames):
            yield as_mono(path, frames)
        if len(frames) < _BLOCK:
            return
