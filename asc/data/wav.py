"""The plainest audio files, read without soundfile, which takes long and keeps threads waiting."""

import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from asc.task import SAMPLE_RATE

_PCM, _EXTENSIBLE = 1, 0xFFFE
# The tail of every WAVE_FORMAT_EXTENSIBLE identifier that stands for an old format tag.
_GUID = bytes.fromhex("000000001000800000aa00389b71")
_INTEGERS = {2: ("<i2", 1, -1, 2**-15), 3: ("<i4", 0, -256, 2**-31)}
_PIECE = 2**14  # samples converted at a time
_MOST_NOTES = 1024  # bytes of title, software and the like that are looked through


def read_plain_wav(path: Path, frames: int) -> NDArray[np.float32] | None:
    """The samples of a 44.1 kHz mono WAV file of 16 or 24 bit PCM, as soundfile gives them.

    Args:
        path: the file.
        frames: read no more than so many from the start; -1 reads everything.

    Returns:
        (samples,) scaled to +-1, or None: the file is something else, or there is something odd
        about it, such as sizes that contradict each other, and soundfile has to say what it holds.
    """
    try:
        with path.open("rb") as file:
            found = _find_samples(file)
            if found is None:
                return None
            width, start, held = found
            file.seek(start)
            return _read_samples(file, width, held if frames < 0 else min(held, frames))
    except OSError:
        return None


def count_plain_wav(path: Path) -> int | None:
    """How many samples `read_plain_wav` finds, from the header alone; None where it finds none."""
    try:
        with path.open("rb") as file:
            found = _find_samples(file)
    except OSError:
        return None
    return None if found is None else found[2]


def _read_samples(file: BinaryIO, width: int, count: int) -> NDArray[np.float32] | None:
    """Of a file that is where they start; None if it has become shorter.

    Piece by piece: fresh memory for all of them would cost more than the conversion.
    """
    samples, most = np.empty(count, dtype=np.float32), min(_PIECE, count)
    content = bytearray(1 + width * most)
    # 16 bits as they are; 24 bits, together with the byte before them, as the upper part of 32.
    dtype, first_byte, bits, scale = _INTEGERS[width]
    integers = np.ndarray(most, dtype, content, first_byte, (width,))
    for start in range(0, count, _PIECE):
        piece = samples[start : start + _PIECE]
        wanted = memoryview(content)[1 : 1 + width * len(piece)]
        if file.readinto(wanted) != len(wanted):  # type: ignore[attr-defined]
            return None
        held = integers[: len(piece)] & bits
        np.multiply(held, np.float32(scale), out=piece, dtype=np.float32, casting="unsafe")
    return samples


def _find_samples(file: BinaryIO) -> tuple[int, int, int] | None:
    """(bytes of a sample, where the first is, how many there are) of a file that is all regular:
    one fmt chunk, then one data chunk, others that are known around them, every size as it is.
    """
    end = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    if int.from_bytes(head[4:8], "little") + 8 != end:
        return None
    width, found, position = 0, None, 12
    while position < end:
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
        name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        start, position = position + 8, position + 8 + size + size % 2
        if position > end:
            return None
        if name == b"fmt " and not width:
            width = _sample_bytes(file.read(min(size, 40)), size)
            if not width:
                return None
        elif name == b"data" and width and found is None and size and size % width == 0:
            found = width, start, size // width
        elif not _means_nothing(name, size, file):
            return None
    return found


def _means_nothing(name: bytes, size: int, file: BinaryIO) -> bool:
    """Whether libsndfile passes over a chunk, of which the file is at the start.

    It reads on at the wrong place, or not at all, after some that are not as they should be.
    """
    if name != b"LIST":
        return name == b"JUNK" or (name, size) == (b"fact", 4)
    if not 4 <= size <= _MOST_NOTES or file.read(4) != b"INFO":
        return False
    notes, position = file.read(size - 4), 0
    while position < len(notes):
        if not re.match(rb"I[A-Z]{3}", notes[position : position + 4]):
            return False
        length = int.from_bytes(notes[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    return position == len(notes)


def _sample_bytes(fmt: bytes, size: int) -> int:
    """Of 44.1 kHz mono PCM of 16 or 24 bits: 2 or 3; of any other format 0."""
    if size not in (16, 18, 40) or len(fmt) < size:
        return 0
    tag, channels, rate, byte_rate, width, bits = struct.unpack("<HHIIHH", fmt[:16])
    if size == 18 and fmt[16:] != bytes(2):
        return 0
    if size == 40:
        extra, valid, _, subformat = struct.unpack("<HHIH", fmt[16:26])
        if (tag, extra, valid, fmt[26:]) != (_EXTENSIBLE, 22, bits, _GUID):
            return 0
        tag = subformat
    plain = (tag, channels, rate, byte_rate) == (_PCM, 1, SAMPLE_RATE, SAMPLE_RATE * width)
    return width if plain and (width, bits) in ((2, 16), (3, 24)) else 0
