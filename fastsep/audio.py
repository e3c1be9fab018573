"""Log-mels of a spectrum: what follows the FFT, in one pass."""

from typing import NamedTuple

import torch
from torch import Tensor, fx

from fastsep import reference
from fastsep.dispatch import as_node, autocasts, is_observed, run
from fastsep.kernels import takes


class SparseFilters(NamedTuple):
    """M filters over the bins of a spectrum, each by the bins that it reaches.

    Attributes:
        bands: int32 (M, 2), the bins of each filter, from start to before stop.
        weights: float32 (W,), those of each filter's bins, filter after filter.
    """

    bands: Tensor
    weights: Tensor


def sparse_filters(filters: Tensor) -> SparseFilters:
    """Filters without the zeros around them.

    Args:
        filters: (F, M) float32, a column a filter, as `torchaudio.functional.melscale_fbanks`
            makes them.

    Raises:
        TypeError, ValueError: not a float32 tensor of two dimensions.
    """
    _check("filters", filters, torch.float32, "F", "M")
    reached, bins = filters != 0, len(filters)
    start = (reached.cumsum(0) == 0).sum(0)
    stop = bins - (reached.flip(0).cumsum(0) == 0).sum(0)
    stop = torch.maximum(start, stop)  # a filter that reaches nothing
    bin_ = torch.arange(bins, device=filters.device)
    inside = (bin_ >= start[:, None]) & (bin_ < stop[:, None])
    return SparseFilters(torch.stack([start, stop], 1).int(), filters.T[inside])


def log_mel(spectrum: Tensor, filters: SparseFilters) -> Tensor:
    """Power of a spectrum, filters over its bins and `10 log10(max(S, 1e-10))`, in one pass.

    Differentiable in spectrum and weights, then in plain PyTorch; the same bits for any number of
    threads. Only C++ has a kernel: elsewhere, and on CPU tensors while a backend of GPUs is forced,
    plain PyTorch computes. Autocast does not touch it.

    Args:
        spectrum: (N, F, T) complex64, any strides; fastest as `torch.stft` returns it, the bins of
            a frame next to each other. Any size including 0.
        filters: for F bins, on the spectrum's device; see `sparse_filters`.

    Returns:
        (N, T, M) float32 in dB, contiguous. NaN where a filter's sum is NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together, by name.
    """
    if isinstance(spectrum, fx.Proxy):
        return as_node(log_mel, spectrum, filters)
    _check("spectrum", spectrum, torch.complex64, "N", "F", "T")
    if not isinstance(filters, (tuple, list)) or len(filters) != 2:
        raise TypeError("filters must be SparseFilters(bands, weights)")
    bands, weights = filters

    def check() -> None:
        _check_filters(spectrum, bands, weights)

    if not takes(spectrum.device):
        check()
        return reference.log_mel(spectrum, bands, weights)
    if not autocasts(spectrum.device.type):
        return run("log_mel", reference.log_mel, check, spectrum, bands, weights)
    with torch.autocast(spectrum.device.type, enabled=False):
        return run("log_mel", reference.log_mel, check, spectrum, bands, weights)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, *dims: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    if tensor.dim() != len(dims):
        expected = f"({', '.join(dims)})"
        raise ValueError(f"{name} must be {expected}, got shape {tuple(tensor.shape)}")


def _check_filters(spectrum: Tensor, bands: Tensor, weights: Tensor) -> None:
    _check("bands", bands, torch.int32, "M", "2")
    _check("weights", weights, torch.float32, "W")
    for name, tensor in (("bands", bands), ("weights", weights)):
        if tensor.device != spectrum.device:
            raise ValueError(f"{name} is on {tensor.device} but spectrum is on {spectrum.device}")
    if bands.shape[1] != 2:
        raise ValueError(f"bands must be (M, 2), got shape {tuple(bands.shape)}")
    if is_observed():  # by what may not know the values
        return
    bins, (start, stop) = spectrum.shape[1], bands.long().unbind(1)
    outside = (start < 0) | (start > stop) | (stop > bins)
    if outside.any():
        band = tuple(bands[outside][0].tolist())
        raise ValueError(f"bands must lie within the {bins} bins, from start to stop, got {band}")
    if (held := int((stop - start).sum())) != len(weights):
        raise ValueError(f"the bands hold {held} bins but there are {len(weights)} weights")
