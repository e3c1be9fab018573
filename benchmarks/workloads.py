"""What is measured: the network's blocks on its real shapes, with random weights."""

import torch
from torch import Tensor

from asc.features import N_MELS
from asc.model import Cnn6Sep
from fastsep import BlockParameters

FRAMES = 431


def network() -> Cnn6Sep:
    """A folded Cnn6Sep whose maps have the spread that training gives them."""
    torch.manual_seed(0)
    model = Cnn6Sep()
    with torch.no_grad():
        for _ in range(3):  # running statistics, so that no map vanishes or explodes
            model.train()(torch.randn(2, 1, FRAMES, N_MELS))
    return model.eval().folded()


def clips(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, FRAMES, N_MELS, generator=generator)


def block(cin: int, cout: int, dilation: int = 2) -> BlockParameters:
    generator = torch.Generator().manual_seed(2)
    pointwise = torch.randn(cout, cin, generator=generator) / cin**0.5
    time_taps, freq_taps = torch.randn(2, cout, 3, generator=generator)
    return BlockParameters(
        pointwise, time_taps, freq_taps, torch.randn(cout, generator=generator), dilation
    )


def block_flop(n: int, cin: int, cout: int, frames: int, bins: int) -> float:
    """Multiply and add count 2; the centre taps are merged; one input channel needs no product."""
    per_output = 5 if cin == 1 else cin + 5
    return 2.0 * n * cout * per_output * frames * bins


def network_flop(batch: int) -> float:
    total, frames, bins, cin = 0.0, FRAMES, N_MELS, 1
    for cout in (64, 128, 128, 128):
        total += block_flop(batch, cin, cout, frames, bins)
        frames, bins, cin = frames // 2, bins // 2, cout
    return total
