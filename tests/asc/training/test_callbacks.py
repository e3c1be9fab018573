import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from asc.training import module
from asc.training.callbacks import AtomicCheckpointIO, Progress
from asc.training.settings import Settings


def test_losses_are_looked_at_every_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any], settings: Settings
) -> None:
    """As on a GPU: the progress bar asks for numbers now and then, and at the end of an epoch."""
    monkeypatch.setitem(module.LOOK_EVERY, "cpu", 3)
    asked = []
    update = Progress._update_metrics

    def spy(self: Any, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.training:
            asked.append((trainer.current_epoch, trainer.fit_loop.batch_idx))
        update(self, trainer, pl_module)

    monkeypatch.setattr(Progress, "_update_metrics", spy)
    preset = replace(settings.preset, epochs=2, batch_size=2)  # 5 steps an epoch
    train(tmp_path / "run", replace(settings, preset=preset))
    assert asked == [(e, i) for e in range(2) for i in (0, 3, 4, 4)]  # and after the epoch


def test_checkpoint_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def killed(source: Any, target: Any) -> None:
        raise OSError("power cut before the rename")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(OSError, match="power cut"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]
