"""The folded network in PyTorch's own layers: what the fused one is compared with."""

import torch
from torch import Tensor, nn

from asc.model import Cnn6Sep, MelAffine
from fastsep import BlockParameters


class EagerTwin(nn.Module):
    """A folded network with its blocks written as nn.Conv2d, ReLU and nn.AvgPool2d."""

    def __init__(self, model: Cnn6Sep) -> None:
        super().__init__()
        assert isinstance(model.bn0, MelAffine)
        self.affine, self.mlp = model.bn0, model.mlp
        self.blocks = nn.Sequential(
            *(EagerBlock(block.inference_parameters()) for block in model.blocks)
        )

    def forward(self, logmel: Tensor) -> Tensor:
        return self.head(self.blocks(logmel * self.affine.scale + self.affine.shift))

    def head(self, x: Tensor) -> Tensor:
        return self.mlp(eager_pool(x))


def eager_pool(x: Tensor) -> Tensor:
    x = x.mean(dim=3)
    return x.amax(dim=2) + x.mean(dim=2)


class EagerBlock(nn.Module):
    """A folded block: 1x1 convolution, the sum of two depthwise ones, ReLU, pooling."""

    def __init__(self, p: BlockParameters) -> None:
        super().__init__()
        c, d = len(p.pointwise), p.dilation
        self.pointwise = nn.Conv2d(p.pointwise.shape[1], c, 1, bias=False)
        self.time = nn.Conv2d(c, c, (3, 1), padding=(d, 0), dilation=d, groups=c)
        self.freq = nn.Conv2d(c, c, (1, 3), padding=(0, d), dilation=d, groups=c, bias=False)
        self.pool = nn.AvgPool2d(p.pool)
        self.to(p.bias)
        self.load_state_dict(
            {
                "pointwise.weight": p.pointwise[:, :, None, None],
                "time.weight": p.time_taps[:, None, :, None],
                "time.bias": p.bias,
                "freq.weight": p.freq_taps[:, None, None, :],
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.pointwise(x)
        return self.pool(torch.relu(self.time(z) + self.freq(z)))
