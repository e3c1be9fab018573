from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from asc.report.pictures import draw_run

TRAINING, VALIDATION = [2.0, 1.5, 1.0], [2.5, 1.75, 1.25]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three epochs of five steps, interrupted and resumed after the second."""
    for epochs in (range(2), range(2, 3)):
        with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
            for epoch in epochs:
                writer.add_scalar("train/loss_epoch", TRAINING[epoch], 5 * epoch + 4)
                writer.add_scalar("val/log_loss", VALIDATION[epoch], 5 * epoch + 4)
    return tmp_path


def test_losses_and_confusion(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    savefig = Figure.savefig

    def spy(self: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(self)
        savefig(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    confusion = np.array([[3, 1], [0, 40]])
    draw_run(run, confusion, ("$x", "tram $\\frac$"), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    losses, matrix = drawn[0].axes
    assert isinstance(losses, Axes) and len(losses.lines) == 2
    for line, values in zip(losses.lines, (TRAINING, VALIDATION), strict=True):
        assert list(line.get_ydata()) == values and list(line.get_xdata()) == [1, 2, 3]
    counts = {text.get_position(): text.get_text() for text in matrix.texts}
    assert counts == {(0, 0): "3", (1, 0): "1", (1, 1): "40"}
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted", "true")
