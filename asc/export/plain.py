"""Ten lines of PyTorch that load a folded file and compute it, for where nothing else is wanted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

_LINES = """\
import torch, torch.nn.functional as F
file = torch.load(PATH, weights_only=True)
scale, shift, w1, b1, w2, b2, *blocks = (t.float() for t in file["parameters"].values())
def logits(x):  # log-mels (N, 1, T, 256) in dB -> (N, classes), in the order of file["classes"]
    x = x * scale + shift
    for p, t, f, b in zip(*[iter(blocks)] * 4):
        x = F.conv2d(x, p[:, :, None, None])
        y = F.conv2d(x, t[:, None, :, None], b, 1, (2, 0), (2, 1), c := len(b))
        x = F.avg_pool2d((y + F.conv2d(x, f[:, None, None], None, 1, (0, 2), (1, 2), c)).relu(), 2)
    return F.linear(F.linear(x.mean(3).amax(2) + x.mean((2, 3)), w1, b1).relu(), w2, b2)"""


def lines(path: Path) -> str:
    """A program that defines `logits` for the folded file at a path."""
    return _LINES.replace("PATH", ascii(str(path)))


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """What the lines define."""
    names: dict[str, Any] = {}
    exec(lines(path), names)
    logits: Callable[[Tensor], Tensor] = names["logits"]
    return logits
