"""Layers: drop-in modules that train with batch norm and run folded in eval mode."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from fastsep import reference
from fastsep.batchnorm import BatchNorm, FoldCache, fold, is_foldable, is_plain, norm_of
from fastsep.checks import BatchNormBlockParameters, BlockParameters, checked_load
from fastsep.dispatch import has_kernel
from fastsep.functional import (
    global_pool_mlp,
    sep_conv2d,
    sep_conv2d_bn_stack,
    sep_conv2d_masked_stack,
    sep_conv2d_stack,
)
from fastsep.hooks import has_global_hooks, has_hooks
from fastsep.streaming import Block, learns, run_block
from fastsep.training import norm_relu_pool


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

    (N, in_channels, T, F) -> (N, out_channels, T // pool, F // pool), one operator in every mode.
    In eval mode the batch norm is folded on the fly; `fold_batchnorm` makes that permanent.
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
        if not isinstance(x, fx.Proxy) and not has_global_hooks():
            folds = self.can_fold()
            if (not folds or learns(self)) and self.can_train():
                return sep_conv2d_bn_stack(x, [self.unfolded()])
            if folds:
                return run_block(self, x, self.folded())
        return norm_relu_pool(self.bn, self.conv(x), self.pool)

    def can_fold(self) -> bool:
        conv, bn = self._modules["conv"], self._modules["bn"]  # each look-up as an attribute shows
        if conv is None or not _is_plain_conv(conv):
            return False
        return conv.bias is not None if bn is None else is_foldable(bn)

    def can_train(self) -> bool:
        """Whether its layers are what `sep_conv2d_bn_stack` computes of `unfolded`."""
        conv: Any = self._modules["conv"]
        bn: Any = self._modules["bn"]
        if conv is None or bn is None or not _is_plain_conv(conv):
            return False
        return conv.bias is None and is_plain(bn)

    def folded(self) -> BlockParameters:
        bn, conv = self.bn, self.conv
        pointwise, taps = conv.pointwise, (conv.time_taps, conv.freq_taps, conv.bias)
        weights = taps if bn is None else self._fold(bn, *taps)
        assert weights is not None  # as can_fold says
        time, freq, bias = weights
        assert bias is not None
        return BlockParameters(pointwise, time, freq, bias, conv.dilation, self.pool)

    def unfolded(self) -> BatchNormBlockParameters:
        """Weights and batch norm as they are."""
        bn, conv = self.bn, self.conv
        assert bn is not None
        pointwise, time, freq = conv.pointwise, conv.time_taps, conv.freq_taps
        geometry = conv.dilation, self.pool
        return BatchNormBlockParameters(pointwise, time, freq, *norm_of(bn), *geometry)

    def may_join(self) -> bool:
        return self.can_fold() and type(self).forward is SepConvBlock.forward

    def fold_(self, eps: float | None = None) -> None:
        """Folds the batch norm into the convolution for good; nothing to do on a folded block."""
        bn, conv = self.bn, self.conv
        if not isinstance(bn, BatchNorm):
            return
        with torch.no_grad():
            taps = fold(bn, conv.time_taps, conv.freq_taps, conv.bias, eps)
        with torch.device("meta"):  # draws no random weights
            folded = SepConv2d(conv.in_channels, conv.out_channels, dilation=conv.dilation)
        # A convolution of its own: the old one may be that of other blocks, or be parametrised.
        pointwise: Any = conv.pointwise
        if not isinstance(pointwise, nn.Parameter):
            pointwise = nn.Parameter(pointwise.detach().clone(), pointwise.requires_grad)
        folded.pointwise = pointwise
        folded.time_taps = nn.Parameter(taps[0], conv.time_taps.requires_grad)
        folded.freq_taps = nn.Parameter(taps[1], conv.freq_taps.requires_grad)
        shift = bn.bias if bn.bias is not None else conv.time_taps
        folded.bias = nn.Parameter(taps[2], shift.requires_grad)
        self.conv, self.bn = folded.train(conv.training), None

    def extra_repr(self) -> str:
        return f"pool={self.pool}"


class SepConvStack(nn.Sequential):
    """Consecutive `SepConvBlock`s as one operator; in eval mode one streaming pass.

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
        blocks = list(self)
        traced = isinstance(x, fx.Proxy)
        if not traced and not has_global_hooks() and all(_is_plain_block(b) for b in blocks):
            folds = all(block.can_fold() for block in blocks)
            if (not folds or learns(self)) and all(block.can_train() for block in blocks):
                unfolded = [block.unfolded() for block in blocks]
                return sep_conv2d_bn_stack(x, unfolded, affine=affine, stripes=stripes)
            if folds:
                folded = [block.folded() for block in blocks]
                return sep_conv2d_stack(
                    x, folded, affine=affine, stripes=stripes, compute=self.compute
                )
        return super().forward(load(x, affine, stripes))

    def masked(
        self,
        x: Tensor,
        stripes: Tensor,
        affine: tuple[Tensor, Tensor] | None = None,
        head: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """The stack on K masked copies of each clip, as `sep_conv2d_masked_stack`; in eval mode.

        Args:
            x: (N, C, T, F).
            stripes: integers (N, K, S, 3).
            affine: as for `sep_conv2d_stack`.
            head: layers of `global_pool_mlp` to follow.

        Returns:
            (N, K, Cout, T', F'), or with a head (N, K, its outputs).
        """
        if self._folds():
            folded = [block.folded() for block in self]
            return sep_conv2d_masked_stack(
                x, folded, stripes, affine=affine, compute=self.compute, head=head
            )
        copies = x.repeat_interleave(stripes.shape[1], 0)
        y = self(copies, affine, stripes.flatten(0, 1))
        y = y if head is None else global_pool_mlp(y, head)
        return y.unflatten(0, stripes.shape[:2])

    def shares(self) -> bool:
        """Whether `masked` has a kernel here; else it takes the memory of all copies at once."""
        weight = next(self.parameters(), None)
        return (
            weight is not None and self._folds() and has_kernel("sep_conv2d_masked_stack", weight)
        )

    def _folds(self) -> bool:
        """Whether the blocks can go as one pass, no step being likely to follow."""
        plain = not has_global_hooks() and all(_is_plain_block(block) for block in self)
        return plain and not learns(self) and all(block.can_fold() for block in self)


class GlobalPool(nn.Module):
    """Global pooling before a network's MLP, (N, C, T, F) -> (N, C); see `global_pool_mlp`."""

    def forward(self, x: Tensor) -> Tensor:
        return global_pool_mlp(x)


def _is_plain_block(block: nn.Module) -> bool:
    """Whether calling it is SepConvBlock's forward; also of what was put into a stack later."""
    plain = isinstance(block, SepConvBlock) and type(block).forward is SepConvBlock.forward
    return plain and not has_hooks(block)


def _is_plain_conv(conv: nn.Module) -> bool:
    return type(conv).forward is SepConv2d.forward and not has_hooks(conv)


@fx.wrap
def load(x: Tensor, affine: tuple[Tensor, Tensor] | None, stripes: Tensor | None) -> Tensor:
    """The input as a stack's first block sees it."""
    return reference.load(x, *checked_load(x, affine, stripes))


def _bound(fan_in: int) -> float:
    return 1 / math.sqrt(max(fan_in, 1))  # kaiming_uniform_(a=sqrt(5)), nn.Conv2d's default
