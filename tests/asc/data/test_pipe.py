"""What comes through a pipe is what soundfile reads from the file, whatever the header says."""

import io
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import soundfile
import torch

from asc.data.pipe import open_pipe
from asc.raw import RawFormat

Refused = Callable[..., AbstractContextManager[None]]

KINDS = {
    "PCM_U8": "u8",
    "PCM_16": "s16le",
    "PCM_24": "s24le",
    "PCM_32": "s32le",
    "FLOAT": "f32le",
    "DOUBLE": "f64le",
}


class Drops(io.BytesIO):
    """A pipe that gives little at a time, and no whole frames."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(min(101, size or 0))


def written(path: Path, subtype: str, channels: int = 1, format: str = "WAV") -> bytes:
    samples = np.random.default_rng(0).uniform(-1, 1, (500, channels))
    soundfile.write(path, samples, 32_000, subtype=subtype, format=format)
    return path.read_bytes()


def came(stream: BinaryIO, raw: RawFormat | None = None) -> tuple[int, Any]:
    recording = open_pipe(stream, raw)
    return recording.rate, torch.cat(list(recording.blocks)).numpy()


@pytest.mark.parametrize("format", ["WAV", "WAVEX"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("subtype", KINDS)
def test_what_soundfile_reads(tmp_path: Path, subtype: str, channels: int, format: str) -> None:
    content = written(tmp_path / "a.wav", subtype, channels, format)
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)
    expected = torch.from_numpy(samples).mean(dim=1).numpy()
    for stream in (io.BytesIO(content), Drops(content)):
        rate, heard = came(stream)
        assert rate == 32_000 and heard.dtype == np.float32
        np.testing.assert_array_equal(heard, expected)
    # By hand: the fmt chunk is not the only one before the samples.
    start = content.index(b"data") + 8
    length = int.from_bytes(content[start - 4 : start], "little")
    raw = RawFormat(32_000, channels, KINDS[subtype])  # type: ignore[arg-type]
    rate, heard = came(Drops(content[start : start + length]), raw)
    assert rate == 32_000
    np.testing.assert_array_equal(heard, expected)


@pytest.mark.parametrize("length", [0, 0x7FFF_FFDC, 0xFFFF_FFFF])
def test_a_header_that_does_not_know_how_much_there_will_be(tmp_path: Path, length: int) -> None:
    content = bytearray(written(tmp_path / "a.wav", "PCM_16"))
    _, expected = came(io.BytesIO(content))
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", length)
    content[4:8] = struct.pack("<I", 0xFFFF_FFFF)
    np.testing.assert_array_equal(came(io.BytesIO(content))[1], expected)


def test_what_follows_the_samples_is_not_heard(tmp_path: Path) -> None:
    content = written(tmp_path / "a.wav", "PCM_16")
    _, expected = came(io.BytesIO(content))
    notes = b"LIST" + struct.pack("<I", 4) + b"INFO"
    np.testing.assert_array_equal(came(io.BytesIO(content + notes))[1], expected)
    before = content[:12] + notes + content[12:]
    np.testing.assert_array_equal(came(io.BytesIO(before))[1], expected)


def test_half_a_frame_at_the_end_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = written(tmp_path / "a.wav", "PCM_24", 2)
    _, expected = came(io.BytesIO(content))
    assert not caplog.text
    np.testing.assert_array_equal(came(Drops(content[:-4]))[1], expected[:-1])
    assert "ends 4 bytes before it should" in caplog.text
    caplog.clear()
    raw = RawFormat(44_100, 2, "s24le")
    np.testing.assert_array_equal(came(Drops(content[44:-1]), raw)[1], expected[:-1])
    assert "ends 1 bytes" in caplog.text


def test_blocks_are_not_waited_for(tmp_path: Path) -> None:
    content = written(tmp_path / "a.wav", "PCM_16")
    stream = Drops(content)
    blocks = open_pipe(stream).blocks
    begun = stream.tell()
    next(blocks)
    assert begun < stream.tell() <= begun + 101


def test_refused(tmp_path: Path, refused: Refused) -> None:
    good = written(tmp_path / "a.wav", "PCM_16")
    cases = {
        b"": "holds nothing",
        b"fLaC" + bytes(100): "not WAV",
        good[:30]: "damaged",
        good[:40]: "ends before any samples",
        good.replace(b"fmt ", b"tmf "): "no format",
        good[:20] + b"\x02\x00" + good[22:]: "expected PCM",  # ADPCM
        good[:22] + b"\x00\x00" + good[24:]: "0 channels",
        good[:24] + struct.pack("<I", 44_101) + good[28:]: "44101 Hz",
    }
    for content, part in cases.items():
        with refused("standard input", part):
            open_pipe(io.BytesIO(content))
    nan = np.full(100, np.nan, dtype="<f4").tobytes()
    with refused("standard input", "NaN"):
        came(io.BytesIO(nan), RawFormat(44_100, 1, "f32le"))
    huge = np.full(100, 1e300).tobytes()
    with refused("standard input", "huge"):
        came(io.BytesIO(huge), RawFormat(44_100, 1, "f64le"))


@pytest.mark.parametrize(("rate", "channels"), [(0, 1), (44_100, 0), (10**7, 1), (44_100, 9999)])
def test_raw_formats_that_are_none(rate: int, channels: int) -> None:
    with pytest.raises(ValueError, match="rate must be"):
        RawFormat(rate, channels, "s16le")
