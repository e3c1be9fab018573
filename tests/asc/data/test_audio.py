import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asc.data import fit_length, load_clip, read_audio
from asc.data.audio import is_longer
from asc.task import CLIP_SAMPLES, SAMPLE_RATE

Refused = Callable[..., Any]


def tone(hertz: float, seconds: float = 0.5, rate: int = SAMPLE_RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(
    path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, subtype: str = "PCM_24"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize(
    ("subtype", "step"),
    [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 2**-24), ("FLOAT", 2**-24)],
)
def test_sample_types(tmp_path: Path, subtype: str, step: float) -> None:
    samples = tone(440)
    waveform = read_audio(write(tmp_path / "a.wav", samples, subtype=subtype))
    assert waveform.dtype == torch.float32
    # One step of the format (half by rounding, plus scaling by 2**n or 2**n - 1), or float32's.
    np.testing.assert_allclose(waveform.numpy(), samples, rtol=0, atol=step + 2**-24)


def test_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(440), SAMPLE_RATE, subtype="PCM_16")
    assert read_audio(path).shape == (SAMPLE_RATE // 2,)


@pytest.mark.parametrize("seconds", [0.01, 3.0, 11.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_streamed_flac(tmp_path: Path, seconds: float, channels: int) -> None:
    """Its header leaves open how long it is."""
    samples = np.random.default_rng(0).normal(0, 0.1, (round(seconds * SAMPLE_RATE), channels))
    path = write(tmp_path / "a.flac", samples, subtype="PCM_16")
    whole = read_audio(path)
    content = bytearray(path.read_bytes())
    assert content[:4] == b"fLaC"
    content[21] &= 0xF0  # the number of samples: 36 bits of the first block of metadata
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert soundfile.info(path).frames == 2**63 - 1
    assert torch.equal(read_audio(path), whole)
    for length in (0.005, 10):
        expected = whole[: math.ceil(length * SAMPLE_RATE)]
        assert torch.equal(read_audio(path, max_seconds=length), expected)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(440))
    renamed = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    path.rename(renamed)
    assert len(read_audio(renamed)) == SAMPLE_RATE // 2


def test_oddities_are_noted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, silent = write(tmp_path / "a.wav", tone(440)), write(tmp_path / "b.wav", np.zeros(9999))
    single = write(tmp_path / "c.wav", np.ones(1))
    cut, streamed = tmp_path / "d.wav", tmp_path / "e.wav"
    content = good.read_bytes()
    cut.write_bytes(content[:30_000])
    at = content.index(b"data") + 4
    streamed.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    for path in (good, streamed, silent, single, cut) * 2:
        read_audio(path)
    notes = [record.getMessage() for record in caplog.records]
    assert notes == [
        f"asc: note: {silent}: is silent",
        f"asc: note: {single}: holds only 1 samples, which are repeated to fill a clip",
        f"asc: note: {cut}: is cut short, it holds {30_000 - at - 4} of 66150 bytes of audio",
    ]


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(300), 0.5 * tone(700)], axis=1)
    waveform = read_audio(write(tmp_path / "a.wav", stereo, subtype="FLOAT"))
    np.testing.assert_allclose(waveform.numpy(), stereo.mean(1), rtol=0, atol=2**-23)


@pytest.mark.parametrize("rate", [48_000, 22_050, 8_000])
def test_resampling(tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", tone(1000, rate=rate), rate, "FLOAT")
    waveform = read_audio(path).numpy()
    assert len(waveform) == SAMPLE_RATE // 2
    middle = slice(2000, -2000)  # the filter sees zeros beyond the ends
    # torchaudio's default filter is flat to 1e-3 well below the cut-off.
    np.testing.assert_allclose(waveform[middle], tone(1000)[middle], rtol=0, atol=1e-3)


def test_hopeless_sample_rate(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path / "a.wav", tone(440), 44_101)
    with refused(path, "44101"):
        read_audio(path)


def test_max_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(440), subtype="FLOAT")
    whole = read_audio(path)
    assert torch.equal(read_audio(path, max_seconds=0.1), whole[:4410])
    assert torch.equal(read_audio(path, max_seconds=9), whole)


def test_missing_and_directory(tmp_path: Path, refused: Refused) -> None:
    for path, what in ((tmp_path / "no.wav", "no such file"), (tmp_path, "directory")):
        with refused(path, what):
            read_audio(path)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.raw", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"not audio at all" * 10, b"RIFF\x00\x01WAVEfmt "])
def test_corrupt(tmp_path: Path, name: str, content: bytes, refused: Refused) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with refused(path):
        read_audio(path)


def test_empty(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path / "a.wav", np.zeros(0))
    with refused(path, "no audio samples"):
        read_audio(path)


@pytest.mark.parametrize(
    ("bad", "subtype"),
    [(np.nan, "FLOAT"), (-np.inf, "FLOAT"), (1e300, "DOUBLE"), (1e20, "FLOAT")],
)
def test_non_finite(tmp_path: Path, bad: float, subtype: str, refused: Refused) -> None:
    samples = np.zeros((100, 2))
    samples[50, 1] = bad
    path = write(tmp_path / "a.wav", samples, subtype=subtype)
    with refused(path, "NaN"):
        read_audio(path)


def test_fit_length() -> None:
    waveform = torch.arange(5.0)
    assert fit_length(waveform, 3).tolist() == [0, 1, 2]
    assert fit_length(waveform, 5).tolist() == [0, 1, 2, 3, 4]
    assert fit_length(waveform, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    with pytest.raises(ValueError, match="empty"):
        fit_length(torch.zeros(0))
    with pytest.raises(ValueError, match=r"\(1, 5\)"):
        fit_length(waveform[None])


@pytest.mark.parametrize("seconds", [0.01, 3.0, 11.0])
@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_load_clip_is_always_10_s(tmp_path: Path, seconds: float, rate: int) -> None:
    path = write(tmp_path / "a.wav", tone(440, seconds, rate), rate)
    clip = load_clip(path)
    assert clip.shape == (CLIP_SAMPLES,)
    start = min(len(clip), round(min(seconds, 10) * SAMPLE_RATE)) - 100
    assert torch.equal(clip[:start], read_audio(path)[:start])


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize("rate", [44_100, 8_000])
def test_how_long_it_is(tmp_path: Path, name: str, rate: int, refused: Refused) -> None:
    path = tmp_path / name
    soundfile.write(path, tone(440, 2.0, rate), rate)
    assert is_longer(path, 1.99) and not is_longer(path, 2.0)
    with refused("none.wav", "no such file"):
        is_longer(tmp_path / "none.wav", 1)
