"""`to_eager(model)`: the same network in PyTorch's own layers.

For export (`torch.onnx.export`, `torch.export`, `torch.jit.trace`), for comparison, and as what the
benchmarks measure against: `nn.Conv2d`, `nn.BatchNorm2d`, `nn.ReLU`, `nn.AvgPool2d`, nothing else.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastsep import reference
from fastsep.fusion import unfuse
from fastsep.modules import GlobalPool, SepConv2d, SepConvBlock, SepConvStack


def to_eager(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every fastsep layer is made of PyTorch's own layers.

    Blocks keep their batch norm, or the lack of one; all keep their place, mode, dtype and device,
    and parameters whether they need gradients. What `fuse` put in place becomes the original again.
    Weights are copies; parametrised ones are those of the moment. A stack takes `affine=` and
    `stripes=` as before and forgets `compute=`. Hooks on fastsep layers stay behind. A subclass of
    a fastsep layer with a forward of its own is copied as it is.

    Args:
        model: any module, a fastsep layer itself included; left as it is.

    Returns:
        The copy, of the model's type unless the model itself is a fastsep layer.
    """
    memo: dict[Any, Any] = {}  # deepcopy's: what stands there for an object is not copied again
    for module in model.modules():
        _replace(module, memo)
    eager = copy.deepcopy(model, memo)
    unfuse(eager)
    return eager


class EagerConv(nn.Module):
    """`SepConv2d` as a 1x1 convolution and the sum of two depthwise ones."""

    def __init__(self, conv: SepConv2d, memo: dict[Any, Any]) -> None:
        super().__init__()
        cin, c, d = conv.in_channels, conv.out_channels, conv.dilation
        with torch.device("meta"):  # draws no random weights
            self.pointwise = nn.Conv2d(cin, c, 1, bias=False)
            self.time = nn.Conv2d(
                c, c, (3, 1), padding=(d, 0), dilation=(d, 1), groups=c, bias=False
            )
            self.freq = nn.Conv2d(
                c, c, (1, 3), padding=(0, d), dilation=(1, d), groups=c, bias=False
            )
        self.pointwise.weight = _copied(conv.pointwise, (c, cin, 1, 1), memo)
        self.time.weight = _copied(conv.time_taps, (c, 1, 3, 1), memo)
        self.freq.weight = _copied(conv.freq_taps, (c, 1, 1, 3), memo)
        if conv.bias is not None:
            self.time.bias = _copied(conv.bias, (c,), memo)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pointwise(x)
        return self.time(z) + self.freq(z)


class EagerBlock(nn.Module):
    """`SepConvBlock`, layer by layer; without batch norm when it was folded."""

    def __init__(self, block: SepConvBlock, memo: dict[Any, Any]) -> None:
        super().__init__()
        self.relu, self.pool = nn.ReLU(), nn.AvgPool2d(block.pool)
        self.train(block.training)
        self.conv, self.bn = _copied_module(block.conv, memo), _copied_module(block.bn, memo)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.pool(self.relu(y if self.bn is None else self.bn(y)))


class EagerStack(nn.Sequential):
    """`SepConvStack`, block by block."""

    def forward(
        self,
        x: Tensor,
        affine: tuple[Tensor, Tensor] | None = None,
        stripes: Tensor | None = None,
    ) -> Tensor:
        """x (N, C, T, F); affine and stripes as for `sep_conv2d_stack`."""
        scale, shift = affine or (None, None)
        return super().forward(reference.load(x, scale, shift, stripes))


class EagerPool(nn.Module):
    """`GlobalPool`: mean over F, then its maximum over T plus its mean over T."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=3)
        return x.amax(dim=2) + x.mean(dim=2)


def _copied_module(module: nn.Module | None, memo: dict[Any, Any]) -> Any:
    if module is not None:
        _replace(module, memo)
    return copy.deepcopy(module, memo)


def _replace(module: nn.Module, memo: dict[Any, Any]) -> None:
    """Puts what takes a fastsep layer's place into the memo."""
    if id(module) in memo:
        return
    forward = type(module).forward  # that of a subclass may compute something else
    eager: nn.Module
    if isinstance(module, SepConv2d) and forward is SepConv2d.forward:
        eager = EagerConv(module, memo)
    elif isinstance(module, SepConvBlock) and forward is SepConvBlock.forward:
        eager = EagerBlock(module, memo)
    elif isinstance(module, SepConvStack) and forward is SepConvStack.forward:
        eager = EagerStack(*(_copied_module(block, memo) for block in module))
        eager.training = module.training
    elif isinstance(module, GlobalPool) and forward is GlobalPool.forward:
        eager = EagerPool().train(module.training)
    elif isinstance(module, (SepConv2d, SepConvBlock, SepConvStack, GlobalPool)):
        eager = copy.deepcopy(module, memo)  # whole, since it may ask anything of its layers
    else:
        return
    memo[id(module)] = eager


def _copied(weight: Tensor, shape: tuple[int, ...], memo: dict[Any, Any]) -> nn.Parameter:
    """The weight as a convolution holds it; one that two layers share stays one."""
    key = "weight", id(weight), shape
    if key not in memo:
        value = weight.detach().clone().reshape(shape)
        memo[key] = nn.Parameter(value, requires_grad=weight.requires_grad)
    return memo[key]
