"""The operator, block, stacks, head and log-mel in plain PyTorch: what every kernel must compute.

Shapes: x (N, Cin, T, F); pointwise (Cout, Cin); time_taps and freq_taps (Cout, 3); bias (Cout,).
Sizes may be zero. float16 and bfloat16 are computed in float32 and rounded once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsep.layouts import accumulator


def sep_conv2d(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor | None = None,
    dilation: int = 2,
) -> Tensor:
    """1x1 convolution, then a dilated 3x1 plus a dilated 1x3 depthwise one: (N, Cout, T, F)."""
    frames, bins = x.shape[2:]
    dt, df = min(dilation, frames), min(dilation, bins)  # taps beyond the map read 0 all the same
    wide = accumulator(x.dtype)
    z = torch.einsum("ck,nktf->nctf", pointwise.to(wide), x.to(wide))
    z = F.pad(z, (df, df, dt, dt))
    a, b = time_taps.to(wide), freq_taps.to(wide)
    y = sum(
        a[:, k, None, None] * z[:, :, k * dt : k * dt + frames, df : df + bins]
        + b[:, k, None, None] * z[:, :, dt : dt + frames, k * df : k * df + bins]
        for k in range(3)
    )
    assert isinstance(y, Tensor)
    if bias is not None:
        y = y + bias.to(wide)[:, None, None]
    return y.to(x.dtype)


def sep_conv2d_block(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor,
    dilation: int = 2,
    pool: int = 2,
) -> Tensor:
    """`sep_conv2d`, ReLU and pool x pool average pooling: (N, Cout, T // pool, F // pool).

    Rows and columns that do not fill a pooling window are dropped.
    """
    wide = accumulator(x.dtype)
    weights = [w.to(wide) for w in (pointwise, time_taps, freq_taps, bias)]
    y = sep_conv2d(x.to(wide), weights[0], weights[1], weights[2], weights[3], dilation)
    return _relu_pool(y, pool).to(x.dtype)


def sep_conv2d_stack(
    x: Tensor,
    blocks: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, int, int]],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    stripes: Tensor | None = None,
) -> Tensor:
    """Consecutive blocks on the loaded input; each holds the arguments of `sep_conv2d_block`."""
    y = load(x, scale, shift, stripes)
    for block in blocks:
        y = sep_conv2d_block(y, *block)
    return y


def sep_conv2d_masked_stack(
    x: Tensor,
    pointwise: Sequence[Tensor],
    time_taps: Sequence[Tensor],
    freq_taps: Sequence[Tensor],
    bias: Sequence[Tensor],
    dilation: Sequence[int],
    pool: Sequence[int],
    scale: Tensor | None,
    shift: Tensor | None,
    stripes: Tensor,
    bf16: bool = False,
    head: bool = False,
    head_weight: Sequence[Tensor] = (),
    head_bias: Sequence[Tensor] = (),
) -> Tensor:
    """`sep_conv2d_stack` on K masked copies of each clip, a clip's copies one after the other.

    stripes: (N, K, S, 3). bf16: lets kernels round; nothing is rounded here. head: whether
    `global_pool_mlp` with these layers follows.

    Returns:
        (N K, Cout, T', F'), channels_last; with the head what that gives.
    """
    blocks = list(zip(pointwise, time_taps, freq_taps, bias, dilation, pool, strict=True))
    copies = x.repeat_interleave(stripes.shape[1], 0)
    y = sep_conv2d_stack(copies, blocks, scale, shift, stripes.flatten(0, 1))
    if head:
        return global_pool_mlp(y, head_weight, head_bias)
    return y.contiguous(memory_format=torch.channels_last)


def sep_conv2d_bn_stack(
    x: Tensor,
    pointwise: Sequence[Tensor],
    time_taps: Sequence[Tensor],
    freq_taps: Sequence[Tensor],
    gamma: Sequence[Tensor],
    beta: Sequence[Tensor],
    mean: Sequence[Tensor],
    var: Sequence[Tensor],
    eps: Sequence[float],
    dilation: Sequence[int],
    pool: Sequence[int],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    stripes: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Consecutive blocks in training, on the loaded input: `sep_conv2d` without bias, batch norm,
    ReLU and pooling. A list holds an argument of each block.

    gamma, beta: (Cout,). mean, var: the frozen statistics, (Cout,), or (0,) to take the batch's.

    Returns:
        (y, statistics): for each block the mean and the biased variance that were used, float64
        (2, Cout).
    """
    y, statistics = load(x, scale, shift, stripes), []
    for i, weights in enumerate(zip(pointwise, time_taps, freq_taps, strict=True)):
        y = sep_conv2d(y, *weights, None, dilation[i])
        if mean[i].shape == gamma[i].shape:
            used = torch.stack([mean[i], var[i]]).double()
        else:
            centre = y.double().mean((0, 2, 3))
            spread = (y.double() - centre[:, None, None]).square().mean((0, 2, 3))
            used = torch.stack([centre, spread])
        statistics.append(used)
        factor = gamma[i] * (used[1] + eps[i]).rsqrt()
        y = (y - used[0][:, None, None]) * factor[:, None, None] + beta[i][:, None, None]
        y = _relu_pool(y, pool[i]).to(x.dtype)
    return y, statistics


def load(x: Tensor, scale: Tensor | None, shift: Tensor | None, stripes: Tensor | None) -> Tensor:
    """The input as the first block sees it: the per-bin affine (F,), then the stripes set to 0.

    stripes: integers (N, S, 3) of (axis, start, stop); axis 0 is time, 1 is frequency.
    """
    if scale is not None and shift is not None:
        wide = accumulator(x.dtype)
        x = (x.to(wide) * scale.to(wide) + shift.to(wide)).to(x.dtype)
    if stripes is not None:
        axis, start, stop = stripes.long().unbind(-1)
        frame = torch.arange(x.shape[2], device=x.device)
        bin_ = torch.arange(x.shape[3], device=x.device)
        rows = _inside(frame, axis == 0, start, stop)[:, None, :, None]
        columns = _inside(bin_, axis == 1, start, stop)[:, None, None, :]
        x = torch.where(rows | columns, 0, x)  # a product would keep NaN and inf
    return x


def global_pool_mlp(x: Tensor, weight: Sequence[Tensor], bias: Sequence[Tensor]) -> Tensor:
    """Mean over F, then its maximum over T plus its mean over T, then linear layers with a ReLU
    between them: (N, channels or outputs of the last layer); T and F at least 1.
    """
    wide = accumulator(x.dtype)
    rows = x.to(wide).sum(dim=3) / x.shape[3]  # its gradient is a view, that of the mean a map
    y = rows.amax(dim=2) + rows.mean(dim=2)
    for i, (w, b) in enumerate(zip(weight, bias, strict=True)):
        y = F.linear(torch.relu(y) if i > 0 else y, w.to(wide), b.to(wide))
    return y.to(x.dtype)


def bin_statistics(x: Tensor) -> Tensor:
    """Mean and biased variance of each bin of x (N, C, T, F) over all else, float64 (2, F); of no
    values, 0.
    """
    # Centred before it is squared. Three times as fast as torch.var_mean on a batch of log-mels.
    values = x.flatten(0, 2).to(accumulator(x.dtype))
    n = max(len(values), 1)
    centre = (values.sum(0) / n).detach()
    values = values - centre
    rest = values.sum(0).double() / n
    var = (values.square().sum(0) / n - rest.square()).clamp_min(0)
    return torch.stack([centre + rest, var])


def log_mel(waveform: Tensor, window: Tensor, hop: int, bands: Tensor, weights: Tensor) -> Tensor:
    """Frames of a waveform (N, samples), centred every `hop` samples with reflected ends; power
    spectrum, filters over its bins, 10 log10(max(S, 1e-10)): (N, T, M), T = 1 + samples // hop.

    window: (n_fft,). bands: integers (M, 2), the bins of each filter, from start to before stop.
    weights: (W,) those of each filter's bins, filter after filter. What is in no band of a filter
    is not in its sum.
    """
    if waveform.shape[0] == 0:  # which torch.stft does not take
        frames = 1 + (waveform.shape[1] - len(window) % 2) // hop
        return weights.new_zeros(0, frames, len(bands))
    spectrum = torch.stft(
        waveform, len(window), hop, window=window, pad_mode="reflect", return_complex=True
    )
    start, stop = bands.long().unbind(1)
    sizes = stop - start
    filters = torch.repeat_interleave(
        torch.arange(len(bands), device=bands.device), sizes, output_size=len(weights)
    )
    first = sizes.cumsum(0) - sizes  # of each filter's weights
    bins = torch.arange(len(weights), device=bands.device) + (start - first)[filters]
    power = spectrum.real.square() + spectrum.imag.square()
    terms = power.transpose(1, 2)[:, :, bins] * weights
    sums = terms.new_zeros(*terms.shape[:2], len(bands)).index_add(2, filters, terms)
    return 10 * sums.clamp(min=1e-10).log10()


def _relu_pool(y: Tensor, pool: int) -> Tensor:
    n, channels = y.shape[:2]
    rows, columns = y.shape[2] // pool, y.shape[3] // pool
    windows = torch.relu(y)[:, :, : rows * pool, : columns * pool]
    return windows.reshape(n, channels, rows, pool, columns, pool).mean(dim=(3, 5))


def _inside(positions: Tensor, chosen: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """(N, len(positions)): whether a chosen stripe of the sample covers the position."""
    hit = (positions >= start[..., None]) & (positions < stop[..., None])
    return (hit & chosen[..., None]).any(dim=1)
