"""Batch norm in eval mode as an affine map, and that map folded into the taps and a bias."""

import torch
from torch import Tensor, nn

from fastsep.dispatch import is_observed
from fastsep.hooks import has_hooks

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


def uses_batch_statistics(bn: BatchNorm) -> bool:
    """Whether `bn` takes mean and variance from its input."""
    return bn.training or bn.running_mean is None


def is_foldable(bn: nn.Module) -> bool:
    """Whether calling `bn` now does what `fold` knows: no hooks, no statistics of the batch."""
    if not isinstance(bn, BatchNorm) or type(bn).forward not in _FORWARDS or has_hooks(bn):
        return False
    return not uses_batch_statistics(bn)


_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)  # a subclass's may do anything


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
