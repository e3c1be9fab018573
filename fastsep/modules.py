"""Layers: drop-in modules that train with batch norm and run folded in eval mode."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from fastsep import reference
from fastsep.batchnorm import FoldCache, fold, uses_batch_statistics
from fastsep.checks import BlockParameters, checked_load
from fastsep.functional import (
    global_pool_mlp,
    sep_conv2d,
    sep_conv2d_stack,
)
from fastsep.streaming import Block, has_hooks, run_block


class SepConv2d(nn.Module):
    """Separable convolution, (N, in_channels, T, F) -> (N, out_channels, T, F); see `sep_conv2d`.

    Its parameters are pointwise (out_channels, in_channels), time_taps and freq_taps
    (out_channels, 3), and bias (out_channels,) if asked for, initialised as `nn.Conv2d` would.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dilation: int = 2, bias: bool = False
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.dilation = in_channels, out_channels, dilation
        self.pointwise = nn.Parameter(torch.empty(out_channels, in_channels))
        self.time_taps = nn.Parameter(torch.empty(out_channels, 3))
        self.freq_taps = nn.Parameter(torch.empty(out_channels, 3))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.pointwise, self.time_taps, self.freq_taps):
            nn.init.uniform_(weight, -(bound := _bound(weight.shape[1])), bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(bound := _bound(6)), bound)

    def forward(self, x: Tensor) -> Tensor:
        return sep_conv2d(
            x, self.pointwise, self.time_taps, self.freq_taps, self.bias, dilation=self.dilation
        )

    def extra_repr(self) -> str:
        bias = "" if self.bias is None else ", bias=True"
        return f"{self.in_channels}, {self.out_channels}, dilation={self.dilation}{bias}"


class SepConvBlock(Block):
    """Separable convolution, batch norm, ReLU, average pooling.

    (N, in_channels, T, F) -> (N, out_channels, T // pool, F // pool). In eval mode the batch norm
    is folded on the fly and the block is one fused pass; `fold_batchnorm` makes that permanent.
    """

    bn: nn.BatchNorm2d | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dilation: int = 2,
        pool: int = 2,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.conv = SepConv2d(in_channels, out_channels, dilation=dilation)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        self.pool = pool
        self._fold = FoldCache()

    def forward(self, x: Tensor) -> Tensor:
        p = None if isinstance(x, fx.Proxy) else self.inference_parameters()
        if p is not None:
            return run_block(self, x, p)
        return norm_relu_pool(self.bn, self.conv(x), self.pool)

    def inference_parameters(self) -> BlockParameters | None:
        bn, conv = self.bn, self.conv  # each look-up in a module shows
        if has_hooks(conv) or (bn is not None and has_hooks(bn)):
            return None
        if bn is not None:
            taps = self._fold(bn, conv.time_taps, conv.freq_taps)
        else:
            assert conv.bias is not None
            taps = conv.time_taps, conv.freq_taps, conv.bias
        if taps is None:
            return None
        return BlockParameters(conv.pointwise, *taps, conv.dilation, self.pool)

    def may_join(self) -> bool:
        bn = self.bn
        folds = bn is None or not (uses_batch_statistics(bn) or has_hooks(bn))
        return folds and not has_hooks(self.conv) and type(self).forward is SepConvBlock.forward

    def fold_(self, eps: float | None = None) -> None:
        """Folds the batch norm into the convolution for good; nothing to do on a folded block."""
        if self.bn is None:
            return
        with torch.no_grad():
            parameters = fold(self.bn, self.conv.time_taps, self.conv.freq_taps, eps)
        names = ("time_taps", "freq_taps", "bias")
        for name, value in zip(names, parameters, strict=True):
            setattr(self.conv, name, nn.Parameter(value))
        self.bn = None

    def extra_repr(self) -> str:
        return f"pool={self.pool}"


class SepConvStack(nn.Sequential):
    """Consecutive `SepConvBlock`s; in eval mode one streaming pass over all of them.

    Args:
        blocks: of the stack, which is a `nn.Sequential` of them.
        compute: "bf16" trades accuracy for speed in that pass, see `sep_conv2d_stack`.
    """

    def __init__(self, blocks: Iterable[SepConvBlock], *, compute: str | None = None) -> None:
        blocks = list(blocks)
        for i, block in enumerate(blocks):
            if not isinstance(block, SepConvBlock):
                raise TypeError(f"block {i} must be a SepConvBlock, got {type(block).__name__}")
        if compute not in (None, "bf16"):
            raise ValueError(f'compute must be None or "bf16", got {compute!r}')
        super().__init__(*blocks)
        self.compute = compute

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(list(self)[index], compute=self.compute)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[SepConvBlock]:  # nn.Sequential promises only modules
        return cast(Iterator[SepConvBlock], super().__iter__())

    def forward(
        self,
        x: Tensor,
        affine: tuple[Tensor, Tensor] | None = None,
        stripes: Tensor | None = None,
    ) -> Tensor:
        """x (N, C, T, F); affine, stripes and result as for `sep_conv2d_stack`."""
        blocks = []
        for block in self:
            if (
                isinstance(x, fx.Proxy)
                or not isinstance(block, SepConvBlock)  # appended, or put in another's place
                or has_hooks(block)
                or (parameters := block.inference_parameters()) is None
            ):
                return super().forward(load(x, affine, stripes))
            blocks.append(parameters)
        return sep_conv2d_stack(x, blocks, affine=affine, stripes=stripes, compute=self.compute)


class GlobalPool(nn.Module):
    """Global pooling before a network's MLP, (N, C, T, F) -> (N, C); see `global_pool_mlp`."""

    def forward(self, x: Tensor) -> Tensor:
        return global_pool_mlp(x)


def norm_relu_pool(bn: nn.Module | None, y: Tensor, pool: int) -> Tensor:
    """What follows the convolution in a block whose layers are called one by one."""
    return relu_pool(y if bn is None else bn(y), pool)


@fx.wrap
def load(x: Tensor, affine: tuple[Tensor, Tensor] | None, stripes: Tensor | None) -> Tensor:
    """The input as a stack's first block sees it."""
    return reference.load(x, *checked_load(x, affine, stripes))


@fx.wrap
def relu_pool(y: Tensor, pool: int) -> Tensor:
    y = torch.relu(y)
    if pool == 1:
        return y
    if min(y.shape[2:]) < pool:  # no window fits, which avg_pool2d calls an error
        return y[:, :, : y.shape[2] // pool, : y.shape[3] // pool]
    return nn.functional.avg_pool2d(y, pool)


def _bound(fan_in: int) -> float:
    return 1 / math.sqrt(max(fan_in, 1))  # kaiming_uniform_(a=sqrt(5)), nn.Conv2d's default
