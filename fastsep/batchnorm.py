"""Batch norm as an affine map, that map folded into the taps and a bias, and blocks in training."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastsep import reference
from fastsep.checks import few_values
from fastsep.dispatch import is_observed, run
from fastsep.hooks import has_hooks
from fastsep.syncnorm import SyncBatchNorm2d
from fastsep.training import track

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm


def fold(
    bn: BatchNorm,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Taps and a bias that do what the taps followed by `bn` in eval mode do.

    Args:
        bn: with running statistics.
        time_taps, freq_taps: (C, 3).
        bias: (C,) of the convolution before `bn`, or None.
        eps: instead of bn.eps. The scale is 1 / sqrt(var + eps) and is computed in float64: a
            channel that hardly ever varied in training makes it huge.

    Returns:
        time_taps, freq_taps (C, 3) and the bias (C,), of the taps' dtype.

    Raises:
        ValueError: bn keeps no running statistics.

    Source: DCASE 2021 Task 1A report of Puy, Jain and Bursuc, eq. 3-5 (which leave eps out).
    """
    scale, shift = batch_norm_affine(bn, eps)
    if bias is not None:
        shift = shift + scale * bias
    dtype = time_taps.dtype
    taps = [(scale[:, None] * taps).to(dtype) for taps in (time_taps, freq_taps)]
    return taps[0], taps[1], shift.to(dtype)


def batch_norm_affine(bn: BatchNorm, eps: float | None = None) -> tuple[Tensor, Tensor]:
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


def per_bin_affine(bn: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The (scale, shift), each (F,) of x's dtype, that `bn` applies to x's bins as to channels.

    As in `bn(x.transpose(1, 3)).transpose(1, 3)` with the statistics of the batch; the running ones
    follow. Differentiable in bn's parameters and in x.

    Args:
        bn: of F channels, that `uses_batch_statistics` and `is_plain`.
        x: (N, C, T, F).
    """
    norm = norm_of(bn)
    count = x.shape[0] * x.shape[1] * x.shape[2]
    if count == 1:
        raise ValueError(few_values(x.transpose(1, 3).shape))
    mean, var = run("bin_statistics", reference.bin_statistics, lambda: None, x)
    if norm.training:
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        track(*running, norm.momentum, (mean.detach(), var.detach()), count)
    scale = (var + norm.eps).rsqrt()
    if norm.gamma is not None:
        scale = scale * norm.gamma
    shift = -scale * mean
    if norm.beta is not None:
        shift = shift + norm.beta
    return scale.to(x.dtype), shift.to(x.dtype)


class Norm(NamedTuple):
    """A batch norm as its forward reads itself, in the order of `BatchNormBlockParameters`."""

    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    training: bool
    momentum: float | None
    eps: float


def norm_of(bn: BatchNorm) -> Norm:
    keeps = bn.track_running_stats or not bn.training
    mean, var = (bn.running_mean, bn.running_var) if keeps else (None, None)
    count = bn.num_batches_tracked if bn.training and keeps else None
    momentum = 0.0 if bn.momentum is None and count is None else bn.momentum
    return Norm(bn.weight, bn.bias, mean, var, count, bn.training, momentum, bn.eps)


def uses_batch_statistics(bn: BatchNorm) -> bool:
    """Whether `bn` takes mean and variance from its input."""
    return bn.training or bn.running_mean is None


def is_foldable(bn: nn.Module) -> bool:
    """Whether calling `bn` now does what `fold` knows: no hooks, no statistics of the batch."""
    if not isinstance(bn, BatchNorm) or type(bn).forward not in _FORWARDS or has_hooks(bn):
        return False
    return not uses_batch_statistics(bn)


def is_plain(bn: nn.Module) -> bool:
    """Whether calling `bn` does what `norm_of` says: no hooks, no statistics across devices."""
    plain = isinstance(bn, nn.BatchNorm2d) and type(bn).forward is nn.BatchNorm2d.forward
    return (plain and not has_hooks(bn)) or is_foldable(bn)


# A subclass's may do anything.
_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, SyncBatchNorm2d.forward)


class FoldCache:
    """Folds a block's batch norm, or says that it cannot be folded now.

    Folded parameters are remembered as long as the tensors they came from hold the same. Values are
    compared, not addresses and versions: the running statistics, `.data` and NumPy views change
    without a new version, and freed memory is reused. Where a value is not all that a tensor holds
    (subclasses; transforms, modes and tracers at work) nothing is remembered. What it hands out is
    for reading only.
    """

    def __init__(self) -> None:
        # (eps, copies of the sources, folded), replaced as one: threads may share the module.
        self._kept: tuple[float, list[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None

    def __call__(
        self, bn: BatchNorm, time_taps: Tensor, freq_taps: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `fold`; None when `bn` uses the statistics of the batch."""
        if uses_batch_statistics(bn):
            return None
        sources = [time_taps, freq_taps, bias, bn.weight, bn.bias, bn.running_mean, bn.running_var]
        tensors = [t for t in sources if t is not None]
        if is_observed() or not _are_values(tensors):
            return fold(bn, time_taps, freq_taps, bias)
        kept = self._kept
        if kept is None or kept[0] != bn.eps or not _same(tensors, kept[1]):
            with torch.inference_mode(False), torch.no_grad():
                copies = [t.clone() for t in tensors]
                kept = (bn.eps, copies, fold(bn, time_taps, freq_taps, bias))
            self._kept = kept
        return kept[2]

    def __deepcopy__(self, memo: object) -> "FoldCache":
        return FoldCache()

    def __reduce__(self) -> tuple[type["FoldCache"], tuple[()]]:
        return FoldCache, ()


_PLAIN = (Tensor, nn.Parameter)


def _are_values(tensors: list[Tensor]) -> bool:
    """Whether the tensors are what they hold, and comparing that waits for no device."""
    differentiates = torch.is_grad_enabled()
    for t in tensors:
        if type(t) not in _PLAIN or not t.is_cpu or (differentiates and t.requires_grad):
            return False
    return True


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        s.dtype == t.dtype and torch.equal(s, t) for s, t in zip(a, b, strict=True)
    )
