"""The plain reader gives what soundfile gives, to the bit, or leaves the file to it."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asc.data import read_audio
from asc.data.wav import read_plain_wav
from asc.errors import UserError

GUID = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def pcm(bits: int, *, channels: int = 1, rate: int = 44_100, tag: int = 1) -> bytes:
    width = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits))


def extensible(bits: int, valid: int | None = None, subformat: int = 1) -> bytes:
    plain = struct.unpack("<4xI16s", pcm(bits, tag=0xFFFE))[1]
    valid = bits if valid is None else valid
    return chunk(b"fmt ", plain + struct.pack("<HHIH", 22, valid, 4, subformat) + GUID)


def soundfiles(path: Path) -> tuple[Any, int] | None:
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except soundfile.SoundFileError:
        return None
    return samples, rate


def check(path: Path) -> bool:
    """Whether the plain reader took it; if so, what soundfile reads is the same."""
    samples = read_plain_wav(path, -1)
    if samples is None:
        return False
    expected = soundfiles(path)
    assert expected is not None
    assert expected[1] == 44_100
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, expected[0])
    return True


DATA = bytes(range(256)) * 3 + b"\x00\x00\x80\xff\xff\x7f\x00\x80\xff\x7f\xff\xff"  # 780 bytes

TAKEN = {
    "16 bits": riff(pcm(16), chunk(b"data", DATA)),
    "24 bits": riff(pcm(24), chunk(b"data", DATA)),
    "one sample": riff(pcm(24), chunk(b"data", DATA[:3])),
    "an odd size": riff(pcm(24), chunk(b"data", DATA[:33])),
    "extensible": riff(extensible(24), chunk(b"data", DATA)),
    "extensible, 16 bits": riff(extensible(16), chunk(b"data", DATA)),
    "18 bytes of format": riff(chunk(b"fmt ", pcm(16)[8:] + bytes(2)), chunk(b"data", DATA)),
    "chunks before": riff(
        chunk(b"JUNK", b"odd"), pcm(24), chunk(b"fact", bytes(4)), chunk(b"data", DATA)
    ),
    "notes": riff(
        pcm(16), chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"Lavf58.29")), chunk(b"data", DATA)
    ),
    "notes after": riff(pcm(24), chunk(b"data", DATA), chunk(b"LIST", b"INFO")),
}
LEFT = {
    "stereo": riff(pcm(16, channels=2), chunk(b"data", DATA)),
    "48 kHz": riff(pcm(16, rate=48_000), chunk(b"data", DATA)),
    "32 bits": riff(pcm(32), chunk(b"data", DATA)),
    "8 bits": riff(pcm(8), chunk(b"data", DATA)),
    "float": riff(pcm(32, tag=3), chunk(b"data", DATA)),
    "float, extensible": riff(extensible(32, subformat=3), chunk(b"data", DATA)),
    "20 of 24 bits": riff(extensible(24, valid=20), chunk(b"data", DATA)),
    "no samples": riff(pcm(24), chunk(b"data", b"")),
    "half a sample": riff(pcm(24), chunk(b"data", DATA[:32])),
    "streamed, size 0": riff(pcm(24), b"data" + bytes(4) + DATA),
    "streamed, size unknown": riff(pcm(24), b"data\xff\xff\xff\xff" + DATA),
    "streamed, both unknown": b"RIFF\xff\xff\xff\xffWAVE"
    + pcm(24)
    + b"data\xff\xff\xff\xff"
    + DATA,
    "cut short": riff(pcm(24), chunk(b"data", DATA))[:-30],
    "cut in a header": riff(pcm(24), b"data\x00\x03"),
    "something behind": riff(pcm(24), chunk(b"data", DATA)) + b"TAG title",
    "two formats": riff(pcm(24), pcm(16), chunk(b"data", DATA)),
    "two pieces of data": riff(pcm(24), chunk(b"data", DATA), chunk(b"data", DATA)),
    "data before the format": riff(chunk(b"data", DATA), pcm(24)),
    "no format": riff(chunk(b"data", DATA)),
    "no data": riff(pcm(24)),
    "RIFX": b"RIFX" + riff(pcm(24), chunk(b"data", DATA))[4:],
    "not WAVE": riff(pcm(24), chunk(b"data", DATA)).replace(b"WAVE", b"WAVX"),
    "broken notes": riff(
        pcm(16), chunk(b"LIST", b"INFOISFT\xff\x00\x00\x00"), chunk(b"data", DATA)
    ),
    "empty": b"",
    "a broadcast": riff(chunk(b"bext", bytes(602)), pcm(24), chunk(b"data", DATA)),
}


@pytest.mark.parametrize("content", TAKEN.values(), ids=TAKEN)
def test_taken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert check(path)
    for frames in (0, 1, 5, 259, 260, 10**9):
        samples = read_plain_wav(path, frames)
        assert samples is not None
        np.testing.assert_array_equal(samples, soundfile.read(path, frames, dtype="float32")[0])


@pytest.mark.parametrize("content", LEFT.values(), ids=LEFT)
def test_left_to_soundfile(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so with its values, errors and notes."""
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert read_plain_wav(path, -1) is None

    def result() -> Any:
        try:
            return read_audio(path).tolist()
        except UserError as error:
            return str(error)

    before = result()
    monkeypatch.setattr("asc.data.audio.read_plain_wav", lambda *_: None)
    assert result() == before


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("format", ["WAV", "WAVEX"])
def test_what_soundfile_writes_is_read_to_the_same_bits(
    tmp_path: Path, format: str, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rng = tmp_path / "a.wav", np.random.default_rng(0)
    samples = rng.integers(-(2**31), 2**31, 50_001).astype(np.int32)
    soundfile.write(path, samples, 44_100, subtype=subtype, format=format)
    assert check(path)
    for seconds in (None, 0.5, 10.0):
        monkeypatch.undo()
        actual = read_audio(path, max_seconds=seconds)
        monkeypatch.setattr("asc.data.audio.read_plain_wav", lambda *_: None)
        assert np.array_equal(actual, read_audio(path, max_seconds=seconds))


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert read_plain_wav(tmp_path / "a.wav", -1) is None
    assert read_plain_wav(tmp_path, -1) is None


INFO = st.builds(
    lambda parts: b"INFO" + b"".join(chunk(*part) for part in parts),
    st.lists(
        st.tuples(
            st.sampled_from([b"ISFT", b"INAM", b"IXYZ", b"labl", b"zzzz"]), st.binary(max_size=40)
        ),
        max_size=3,
    ),
)
OTHER = st.builds(
    chunk,
    st.sampled_from([b"LIST", b"JUNK", b"fact", b"bext", b"PEAK", b"cue ", b"abcd"]),
    st.one_of(INFO, st.binary(max_size=40), st.binary(min_size=4, max_size=4)),
)
OTHERS = st.lists(OTHER, max_size=2)
FORMAT = st.one_of(
    st.builds(pcm, st.sampled_from([16, 24]), channels=st.just(1)),
    st.builds(extensible, st.sampled_from([16, 24]), st.sampled_from([None, None, 20, 0])),
    st.builds(pcm, st.sampled_from([8, 16, 24, 32]), channels=st.integers(0, 3)),
)
CHANGES = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=2)


@settings(max_examples=1000, deadline=None)
@given(OTHERS, FORMAT, OTHERS, st.binary(max_size=40), OTHERS, CHANGES, st.integers(0, 3))
@example([], pcm(24), [], DATA, [], [], 0)
def test_any_header(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[bytes],
    fmt: bytes,
    between: list[bytes],
    data: bytes,
    after: list[bytes],
    changes: list[tuple[int, int]],
    cut: int,
) -> None:
    content = bytearray(riff(*before, fmt, *between, chunk(b"data", data), *after))
    for position, value in changes:
        if position < len(content):
            content[position] = value
    path = tmp_path_factory.getbasetemp() / "any.wav"
    path.write_bytes(content[: len(content) - cut])
    check(path)
