"""Batch norm folded into the taps and a bias, for inference."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def fold(
    bn: nn.BatchNorm2d, time_taps: Tensor, freq_taps: Tensor, eps: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Taps (C, 3) and a bias (C,) that do what the taps followed by `bn` in eval mode do.

    eps: instead of bn.eps. The scale is 1 / sqrt(var + eps) and is computed in float64: a channel
    that hardly ever varied in training makes it huge.
    Raises ValueError when bn keeps no running statistics.
    Source: DCASE 2021 Task 1A report of Puy, Jain and Bursuc, eq. 3-5 (which leave eps out).
    """
    scale, bias = batch_norm_affine(bn, eps)
    dtype = time_taps.dtype
    taps = [(scale[:, None] * taps).to(dtype) for taps in (time_taps, freq_taps)]
    return taps[0], taps[1], bias.to(dtype)


def batch_norm_affine(
    bn: nn.BatchNorm1d | nn.BatchNorm2d, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """The (scale, shift), each (C,) float64, that `bn` applies in eval mode: scale x + shift."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("this batch norm keeps no running statistics, so it cannot be folded")
    scale = (bn.running_var.double() + (bn.eps if eps is None else eps)).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -scale * bn.running_mean
    if bn.bias is not None:
        shift = shift + bn.bias
    return scale, shift


def fold_batchnorm(module: Module, *, eps: float | None = None) -> Module:
    """A copy of `module` for inference: every fastsep block in it with its batch norm folded away.

    The copy is in eval mode; `module` is left as it is. eps: instead of each batch norm's own;
    `eps=0` reproduces software that leaves it out of the square root.
    """
    from fastsep.modules import SepConvBlock

    folded = copy.deepcopy(module).eval()
    for block in folded.modules():
        if isinstance(block, SepConvBlock):
            block.fold_(eps)
    return folded


class FoldCache:
    """Remembers a block's folded parameters until one of the tensors they came from changes."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._folded: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(
        self, bn: nn.BatchNorm2d, time_taps: Tensor, freq_taps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sources = [time_taps, freq_taps, bn.weight, bn.bias, bn.running_mean, bn.running_var]
        tensors = [t for t in sources if t is not None]
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if (
            differentiable
            or torch.compiler.is_compiling()
            or any(t.is_inference() for t in tensors)
        ):
            return fold(bn, time_taps, freq_taps)
        key = (bn.eps, *((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors))
        if self._folded is None or key != self._key:
            with torch.inference_mode(False), torch.no_grad():
                self._folded = fold(bn, time_taps, freq_taps)
            self._key = key
        return self._folded

    def __deepcopy__(self, memo: object) -> "FoldCache":
        return FoldCache()

    def __reduce__(self) -> tuple[type["FoldCache"], tuple[()]]:
        return FoldCache, ()
