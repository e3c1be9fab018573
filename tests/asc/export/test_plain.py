from pathlib import Path

import torch

from asc.checkpoint import save_folded
from asc.export import plain
from asc.model import Cnn6Sep


def test_ten_lines_compute_the_network(model: Cnn6Sep, tmp_path: Path) -> None:
    path = tmp_path / "it's \\odd\udcff.pt"
    save_folded(model, path)
    assert len(plain.lines(path).splitlines()) == 10
    assert plain.lines(path).isascii()
    logits = plain.opened(path)
    for clips, frames in ((2, 47), (1, 16)):
        x = 15 * torch.randn(clips, 1, frames, 256) - 30
        expected = model(x)
        assert (logits(x) - expected).abs().max() < 11 * 2**-11 * expected.abs().max()
