"""A recording as it comes through a pipe: WAV, also of a length that nobody knows yet, or PCM."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asc.data.audio import STREAMED_BYTES, as_mono, check_rate
from asc.data.recordings import Recording
from asc.errors import UserError, note
from asc.raw import MOST_CHANNELS, MOST_RATE, RawFormat, SampleFormat

# Bytes of a sample; how they are read once 24 bits are the upper part of 32; what is subtracted,
# and full scale.
_FORMATS: dict[SampleFormat, tuple[int, str, float, float]] = {
    "u8": (1, "u1", 128, 2**7),
    "s16le": (2, "<i2", 0, 2**15),
    "s24le": (3, "<i4", 0, 2**31),
    "s32le": (4, "<i4", 0, 2**31),
    "f32le": (4, "<f4", 0, 1),
    "f64le": (8, "<f8", 0, 1),
}
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_OF_WAV: dict[tuple[int, int], SampleFormat] = {
    (_PCM, 8): "u8",
    (_PCM, 16): "s16le",
    (_PCM, 24): "s24le",
    (_PCM, 32): "s32le",
    (_FLOAT, 32): "f32le",
    (_FLOAT, 64): "f64le",
}
_READ = 2**16  # bytes at most at once


def open_pipe(
    stream: BinaryIO, raw: RawFormat | None = None, name: str = "standard input"
) -> Recording:
    """The recording that comes through a stream, each block as soon as it is there.

    A WAV header that was written before the length was known (0, or as large as it gets) means
    all that comes.

    Args:
        stream: buffered; it cannot seek.
        raw: of samples without a header; None: the stream is WAV.
        name: of the stream, for messages.

    Raises:
        UserError: not WAV, or of a kind that is not known; a rate that cannot be resampled.
    """
    length: int | None = None
    if raw is None:
        raw, length = _header(stream, name)
    check_rate(name, raw.rate)
    return Recording(name, raw.rate, _blocks(stream, raw, length, name))


def _blocks(stream: BinaryIO, raw: RawFormat, length: int | None, name: str) -> Iterator[Tensor]:
    frame, held = _FORMATS[raw.kind][0] * raw.channels, b""
    while length is None or length > 0:
        most = _READ if length is None else min(_READ, length)
        came = stream.read1(most)  # type: ignore[attr-defined]  # what is there, without waiting
        if not came:
            break
        if length is not None:
            length -= len(came)
        held += came
        whole = len(held) - len(held) % frame
        if whole:
            yield as_mono(name, _decoded(held[:whole], raw))
            held = held[whole:]
    if length or held:
        missing = length or frame - len(held)
        note(f"{name}: ends {missing} bytes before it should; what came before that is used")


def _decoded(content: bytes, raw: RawFormat) -> NDArray[np.float32]:
    """(frames, channels), scaled to +-1."""
    width, dtype, zero, scale = _FORMATS[raw.kind]
    if width == 3:
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        samples = padded.view(dtype)
    else:
        samples = np.frombuffer(content, dtype)
    with np.errstate(over="ignore"):  # of float64: infinite, and refused as such
        floats = samples.astype(np.float32).reshape(-1, raw.channels)
    return (floats - np.float32(zero)) / np.float32(scale) if scale != 1 else floats


def _header(stream: BinaryIO, name: str) -> tuple[RawFormat, int | None]:
    """Of a WAV stream, up to its first sample: what it holds, and how many bytes, if that is said.

    Chunks that are not known are passed over.
    """
    head = stream.read(12)
    if not head:
        raise UserError(f"{name}: holds nothing")
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        raise UserError(
            f"{name}: is not WAV; for raw samples say what they are with --rate, --channels and "
            "--sample-format"
        )
    raw = None
    while True:
        chunk = stream.read(8)
        if len(chunk) < 8:
            raise UserError(f"{name}: its WAV header ends before any samples")
        kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind == b"data":
            if raw is None:
                raise UserError(f"{name}: its WAV header has no format before the samples")
            return raw, size if 0 < size < STREAMED_BYTES else None
        left = size + size % 2
        while left and (body := stream.read(min(left, _READ))):
            if kind == b"fmt " and raw is None:
                raw = _format(body, name)
            left -= len(body)


def _format(body: bytes, name: str) -> RawFormat:
    if len(body) < 16:
        raise UserError(f"{name}: its WAV header is damaged")
    tag, channels, rate, _, width, bits = struct.unpack("<HHIIHH", body[:16])
    if tag == _EXTENSIBLE and len(body) >= 26:
        tag = int.from_bytes(body[24:26], "little")
    kind = _OF_WAV.get((tag, 8 * width // max(1, channels)))
    if (
        kind is None
        or not 1 <= channels <= MOST_CHANNELS
        or width % channels
        or not 1 <= rate <= MOST_RATE
    ):
        raise UserError(
            f"{name}: WAV of format {tag} with {channels} channels of {bits} bits at {rate} Hz; "
            "expected PCM of 8, 16, 24 or 32 bits or float of 32 or 64"
        )
    return RawFormat(rate, channels, kind)
