"""Blocks of a file: together what `read_audio` reads, and never much of it at once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asc.data import read_audio
from asc.data.recordings import open_recording

Refused = Callable[..., AbstractContextManager[None]]


def write(path: Path, seconds: float, channels: int, subtype: str = "PCM_16") -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, (round(44_100 * seconds), channels))
    soundfile.write(path, samples, 44_100, subtype)
    return path


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_read_audio_reads(tmp_path: Path, channels: int, streamed: bool) -> None:
    path = write(tmp_path / "a.flac", 7, channels)
    expected = read_audio(path)
    if streamed:  # a header that leaves open how many samples there are
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0
        content[22:26] = bytes(4)
        path.write_bytes(content)
    with open_recording(path) as recording:
        assert (recording.rate, recording.name) == (44_100, str(path))
        blocks = list(recording.blocks)
    assert len(blocks) > 2 and all(0 < len(block) <= 2**17 for block in blocks)
    assert torch.equal(torch.cat(blocks), expected)


def test_a_whole_number_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(2**18), 8_000)
    with open_recording(path) as recording:
        assert [len(block) for block in recording.blocks] == [2**17, 2**17]


def test_refused(tmp_path: Path, refused: Refused) -> None:
    corrupt, rate = tmp_path / "b.wav", tmp_path / "c.wav"
    corrupt.write_bytes(b"RIFF")
    soundfile.write(rate, np.zeros(100), 44_101)
    for path, part in (
        (tmp_path / "none.wav", "no such file"),
        (tmp_path, "directory"),
        (corrupt, "cannot be read as audio"),
        (rate, "44101"),
    ):
        with refused(path, part), open_recording(path):
            pass


def test_what_is_wrong_later_is_said_when_its_turn_comes(tmp_path: Path, refused: Refused) -> None:
    path, samples = tmp_path / "a.wav", np.zeros(2**17 + 100)
    samples[-1] = np.nan
    soundfile.write(path, samples, 44_100, "FLOAT")
    with open_recording(path) as recording:
        assert len(next(recording.blocks)) == 2**17
        with refused(path, "NaN"):
            next(recording.blocks)


def test_a_file_that_was_cut_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.wav", 1, 1)
    path.write_bytes(path.read_bytes()[:40_000])
    with open_recording(path) as recording:
        assert sum(map(len, recording.blocks)) == (40_000 - 44) // 2
    assert "is cut short" in caplog.text
