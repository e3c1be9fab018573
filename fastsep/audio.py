"""Log-mels of waveforms in one pass."""

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


def log_mel(waveform: Tensor, filters: SparseFilters, *, window: Tensor, hop_length: int) -> Tensor:
    """Log-mel spectrograms in one pass: frames, window, power spectrum, filters over its bins and
    `10 log10(max(S, 1e-10))`.

    Frames are centred every `hop_length` samples and reflect the waveform at its ends, as those of
    `torch.stft` by default. Differentiable in waveform, window and weights, then in plain PyTorch;
    the same bits for any number of threads and whatever else is in the batch. Only C++ has a
    kernel, for windows of a power of two from 32 samples on: elsewhere, and on CPU tensors while a
    backend of GPUs is forced, plain PyTorch computes. Autocast does not touch it.

    Args:
        waveform: (N, samples) float32, N from 0 on, with more samples than half a window.
        filters: for `n_fft // 2 + 1` bins, on the waveform's device; see `sparse_filters`.
        window: (n_fft,) float32, on the waveform's device; such as `torch.hann_window(n_fft)`.
        hop_length: samples from frame to frame, at least 1.

    Returns:
        (N, T, M) float32 in dB, contiguous, with `T = 1 + samples // hop_length` (of `samples - 1`
        for a window of odd length). A NaN or an infinity makes its frames NaN or infinite.

    Raises:
        TypeError, ValueError: arguments that do not fit together, by name.
    """
    if isinstance(waveform, fx.Proxy):
        return as_node(log_mel, waveform, filters, window=window, hop_length=hop_length)
    _check("waveform", waveform, torch.float32, "N", "samples")
    _check("window", window, torch.float32, "n_fft")
    if not isinstance(filters, (tuple, list)) or len(filters) != 2:
        raise TypeError("filters must be SparseFilters(bands, weights)")
    bands, weights = filters

    def check() -> None:
        _check_frames(waveform, window, hop_length)
        _check_filters(len(window) // 2 + 1, waveform.device, bands, weights)

    arguments = waveform, window, hop_length, bands, weights
    if not takes(waveform.device) or not _has_transform(len(window)):
        check()
        return reference.log_mel(*arguments)
    if not autocasts(waveform.device.type):
        return run("log_mel", reference.log_mel, check, *arguments)
    with torch.autocast(waveform.device.type, enabled=False):
        return run("log_mel", reference.log_mel, check, *arguments)


def _has_transform(size: int) -> bool:
    """Whether the kernel has a Fourier transform of so many samples."""
    return size >= 32 and size & (size - 1) == 0


def _check(name: str, tensor: Tensor, dtype: torch.dtype, *dims: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    if tensor.dim() != len(dims):
        expected = f"({', '.join(dims)})"
        raise ValueError(f"{name} must be {expected}, got shape {tuple(tensor.shape)}")


def _check_frames(waveform: Tensor, window: Tensor, hop_length: int) -> None:
    if window.device != waveform.device:
        raise ValueError(f"window is on {window.device} but waveform is on {waveform.device}")
    if len(window) == 0:
        raise ValueError("window must have at least one sample")
    if hop_length < 1:
        raise ValueError(f"hop_length must be at least 1, got {hop_length}")
    half = len(window) // 2
    if waveform.shape[1] <= half:
        raise ValueError(
            f"waveform must have more than {half} samples, half a window, to be reflected at its "
            f"ends, got {waveform.shape[1]}"
        )


def _check_filters(bins: int, device: torch.device, bands: Tensor, weights: Tensor) -> None:
    _check("bands", bands, torch.int32, "M", "2")
    _check("weights", weights, torch.float32, "W")
    for name, tensor in (("bands", bands), ("weights", weights)):
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} but waveform is on {device}")
    if bands.shape[1] != 2:
        raise ValueError(f"bands must be (M, 2), got shape {tuple(bands.shape)}")
    if is_observed():  # by what may not know the values
        return
    start, stop = bands.long().unbind(1)
    outside = (start < 0) | (start > stop) | (stop > bins)
    if outside.any():
        band = tuple(bands[outside][0].tolist())
        raise ValueError(f"bands must lie within the {bins} bins, from start to stop, got {band}")
    if (held := int((stop - start).sum())) != len(weights):
        raise ValueError(f"the bands hold {held} bins but there are {len(weights)} weights")
