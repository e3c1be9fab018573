from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asc.data import LogMelDataset, unlabelled
from asc.demo import SHORT_FRAMES, Shortened, compare_speed, run
from asc.errors import UserError
from asc.model import Cnn6Sep


def test_clips_are_cut_to_what_was_not_repeated(tmp_path: Path, wav: Callable[..., Path]) -> None:
    logmels = LogMelDataset(unlabelled([wav(tmp_path / "a.wav", seconds=2.0)]))
    short = Shortened(logmels)
    assert len(short) == 1
    logmel, label = short[0]
    assert logmel.shape == (1, SHORT_FRAMES, 256) and label == -1
    assert SHORT_FRAMES == 1 + 88_200 // 1024
    assert torch.equal(logmel, logmels[0][0][:, :SHORT_FRAMES])


def test_speed_is_measured_of_both_networks() -> None:
    model = Cnn6Sep().folded()
    eager, fused, note = compare_speed(model, repeats=1)
    assert eager > 0 and fused > 0
    assert "one 10 s clip, float32" in note and torch.__version__ in note


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        run(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
