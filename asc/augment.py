"""SpecAugment stripes (training and test time) and MixUp (training)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asc.compute import send


def _uniform_integers(
    low_inclusive: int, high_exclusive: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Independent integers, each uniform in [low, its own high)."""
    span = high_exclusive - low_inclusive
    # float64 has 53 random bits and span is far below 2**53, so floor(u * span) < span always.
    u = torch.rand(span.shape, generator=generator, dtype=torch.float64, device=span.device)
    return low_inclusive + (u * span).long()


def draw_stripes(
    n: int,
    num_frames: int,
    num_bins: int,
    *,
    time_width: int = 128,
    freq_width: int = 32,
    stripes: int = 2,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws SpecAugment stripes independently for each of n samples.

    A stripe's width is an integer uniform in [0, max_width), its start uniform in
    [0, size - width). A max_width larger than the axis is lowered to the axis's size, so that a
    stripe never covers all of it.

    Numbers are drawn on the generator's device (the CPU without one) and then moved, so the same
    seed gives the same stripes whatever the target device.

    Args:
        n: number of samples (masks) to draw.
        num_frames, num_bins: size of the time and the frequency axis.
        time_width, freq_width: exclusive upper bound of the widths, in frames and bins.
        stripes: stripes per axis.
        generator: random generator; None uses torch's default one.
        device: where to return the result; None is the device drawn on.

    Returns:
        int32 (n, 2 * stripes, 3) of (axis, start, stop), stop exclusive; axis 0 is time, axis 1
        frequency; the time stripes come first.

    Raises:
        ValueError: an argument out of range.
    """
    if n < 0 or stripes < 0:
        raise ValueError(f"n and stripes must not be negative, got {n} and {stripes}")
    if min(num_frames, num_bins, time_width, freq_width) < 1:
        raise ValueError(
            "num_frames, num_bins, time_width and freq_width must be at least 1, got "
            f"{num_frames}, {num_bins}, {time_width} and {freq_width}"
        )
    source = generator.device if generator is not None else torch.device("cpu")
    axis = torch.tensor([0, 1], device=source).repeat_interleave(stripes).expand(n, 2 * stripes)
    size = torch.tensor([num_frames, num_bins], device=source)[axis]
    max_width = torch.tensor([time_width, freq_width], device=source)[axis].minimum(size)
    width = _uniform_integers(0, max_width, generator)
    start = _uniform_integers(0, size - width, generator)
    drawn = torch.stack([axis, start, start + width], dim=-1).to(torch.int32)
    return send(drawn, device or source)


@dataclass(frozen=True)
class SpecAugment:
    """Bounds of the masks a network is trained with; test-time augmentation draws the same.

    time_width (frames) and freq_width (bins) bound the widths of the stripes, exclusively;
    stripes: how many there are per axis.

    Raises:
        TypeError, ValueError: not integers; widths below 1, a negative number of stripes.
    """

    time_width: int = 128
    freq_width: int = 32
    stripes: int = 2

    def __post_init__(self) -> None:
        for name, least in (("time_width", 1), ("freq_width", 1), ("stripes", 0)):
            value = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def draw(
        self,
        n: int,
        num_frames: int,
        num_bins: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Stripes (n, 2 * self.stripes, 3) for n samples; see `draw_stripes`."""
        return draw_stripes(
            n,
            num_frames,
            num_bins,
            time_width=self.time_width,
            freq_width=self.freq_width,
            stripes=self.stripes,
            generator=generator,
            device=device,
        )


def apply_stripes(x: Tensor, stripes: Tensor) -> Tensor:
    """Sets the stripes of every sample to 0; differentiable, and NaN under a stripe becomes 0 too.

    Args:
        x: (N, C, T, F).
        stripes: integer (N, S, 3) of (axis, start, stop), as `draw_stripes` returns.

    Returns:
        A new tensor like x.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: stripes that are not integers.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be (N, C, T, F), got {tuple(x.shape)}")
    if stripes.ndim != 3 or stripes.shape[0] != x.shape[0] or stripes.shape[2] != 3:
        raise ValueError(f"stripes must be ({x.shape[0]}, S, 3), got {tuple(stripes.shape)}")
    if stripes.is_floating_point() or stripes.is_complex() or stripes.dtype == torch.bool:
        raise TypeError(f"stripes must be integers, got {stripes.dtype}")
    axis, start, stop = stripes.to(x.device).unsqueeze(-1).unbind(2)  # each (N, S, 1)

    def covered(which: int, size: int) -> Tensor:
        position = torch.arange(size, device=x.device)
        return ((axis == which) & (start <= position) & (position < stop)).any(1)  # (N, size)

    frames, bins = covered(0, x.shape[2]), covered(1, x.shape[3])
    return x.masked_fill(frames[:, None, :, None] | bins[:, None, None, :], 0.0)


def mixup(
    logmel: Tensor,
    targets: Tensor,
    alpha: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """MixUp: mix the batch with a permutation of itself.

    One weight `lam ~ Beta(alpha, alpha)` for the whole batch; inputs and targets are mixed alike:
    `lam * x + (1 - lam) * x[permutation]`. Both are drawn on the generator's device (the CPU
    without one).

    Args:
        logmel: (N, 1, T, F), floating.
        targets: (N, classes), floating (one-hot or soft).
        alpha: parameter of the Beta distribution, > 0.
        generator: random generator; None uses torch's default one.

    Returns:
        The mixed log-mels and targets, new tensors of the same shapes.

    Raises:
        ValueError: alpha not positive, or batch sizes that differ.
        TypeError: integer targets.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if targets.ndim != 2 or targets.shape[0] != logmel.shape[0]:
        raise ValueError(
            f"targets must be ({logmel.shape[0]}, classes), got {tuple(targets.shape)}"
        )
    if not targets.is_floating_point():
        raise TypeError(f"targets must be floating (one-hot), got {targets.dtype}")
    source = generator.device if generator is not None else torch.device("cpu")
    concentration = torch.full((2,), alpha, dtype=torch.float64, device=source)
    # Beta(a, a) is the first coordinate of Dirichlet(a, a); torch.distributions takes no generator.
    lam = torch._sample_dirichlet(concentration, generator)[0]
    permutation = torch.randperm(logmel.shape[0], generator=generator, device=source)
    permutation = send(permutation, logmel.device)

    def mixed(x: Tensor) -> Tensor:
        other = x.index_select(0, permutation.to(x.device))
        return other.lerp_(x, lam.to(x.dtype))  # one pass, in the only new tensor

    return mixed(logmel), mixed(targets)
