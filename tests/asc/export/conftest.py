"""Fixtures of the tests of exported files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from asc.checkpoint import load_model
from asc.data import load_clip
from asc.model import Cnn6Sep

SHARED = Path(__file__).parents[3].parent / "shared"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Cnn6Sep:
    """Folded, with random weights and statistics, of three classes, calibrated."""
    torch.manual_seed(0)
    network = Cnn6Sep(3)
    network.classes = ("forest", "<b>", "Straße")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    assert network.bn0.running_mean is not None
    network.bn0.running_mean -= 30
    network.bn0.running_var *= 200
    return network.calibrated(0.1).folded()


@pytest.fixture(scope="session")
def released() -> Cnn6Sep:
    """The report's weights, where they are."""
    path = SHARED / "upstream" / "ce_tta.pth"
    if not path.is_file():
        pytest.skip("no released weights here")
    return load_model(path)


@pytest.fixture(scope="session")
def recordings() -> Tensor:
    """Two of real scenes, where they are: (2, 441000)."""
    paths = sorted((SHARED / "audio").glob("*.wav"))
    if len(paths) != 2:
        pytest.skip("no recordings here")
    return torch.stack([load_clip(path) for path in paths])
