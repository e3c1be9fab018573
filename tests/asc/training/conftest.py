"""Fixtures of the tests of training: a task of three classes, small enough for a CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from asc.checkpoint import load_trainable
from asc.training.run import fit
from asc.training.settings import Settings, get_preset

CLASSES = ("fog", "rain", "snow")
PRESET = replace(get_preset("ce_mu_tta"), epochs=3, batch_size=4, time_width=5)
SETTINGS = Settings(PRESET, seed=1)


class Clips(Dataset[tuple[Tensor, int]]):
    """Random log-mels of 16 frames; the class shows in the level."""

    def __init__(self, n: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = [i % len(CLASSES) for i in range(n)]
        noise = 15 * torch.randn(n, 1, 16, 256, generator=generator) - 60
        self.logmels = noise + 10 * torch.tensor(self.labels)[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.logmels[index], self.labels[index]


@pytest.fixture(scope="session")
def make_clips() -> Callable[..., Clips]:
    """make_clips(n, seed): a data set of n clips."""
    return Clips


@pytest.fixture(scope="session")
def settings() -> Settings:
    """A short run of `ce_mu_tta`."""
    return SETTINGS


@pytest.fixture(scope="session")
def train() -> Callable[..., dict[str, Tensor]]:
    """train(out, settings, ...): a run, of whose last checkpoint the weights are returned."""

    def train(out: Path, settings: Settings = SETTINGS, **options: Any) -> dict[str, Tensor]:
        fit(Clips(10), Clips(5, seed=1), CLASSES, settings, out, **options)
        return load_trainable(out / "last.ckpt").state_dict()

    return train
