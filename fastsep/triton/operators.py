"""The operators on a GPU; their arguments are those of the schemas in `fastsep.ops`."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastsep.layouts import accumulator, new_map
from fastsep.triton import launch
from fastsep.triton.backward import SUMS
from fastsep.triton.launch import POOLS, Operator
from fastsep.triton.shared import Load

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def sep_conv2d(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor | None,
    dilation: int,
) -> Tensor:
    op = _operator(x, pointwise, time_taps, freq_taps, bias, dilation)
    return _forward(x, op, x)


def sep_conv2d_block(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor,
    dilation: int,
    pool: int,
) -> Tensor:
    op = _operator(x, pointwise, time_taps, freq_taps, bias, dilation, pool, relu=True)
    return _forward(x, op, x)


def sep_conv2d_stack(
    x: Tensor,
    pointwise: list[Tensor],
    time_taps: list[Tensor],
    freq_taps: list[Tensor],
    bias: list[Tensor],
    dilation: list[int],
    pool: list[int],
    scale: Tensor | None,
    shift: Tensor | None,
    stripes: Tensor | None,
    bf16: bool,
) -> Tensor:
    """Block by block; bf16: products and the maps between the blocks are bfloat16."""
    product = torch.bfloat16 if bf16 and x.dtype == torch.float32 else x.dtype
    y = x
    if scale is not None or stripes is not None:
        y = _loaded(x, scale, shift, stripes, accumulator(product))
    blocks = list(zip(pointwise, time_taps, freq_taps, bias, dilation, pool, strict=True))
    for i, block in enumerate(blocks):
        op = _operator(x, *block, relu=True, product=product)
        y = _forward(y, op, x, x.dtype if i == len(blocks) - 1 else product)
    return y


def sep_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    dilation: int,
    needs_x: bool,
) -> Gradients:
    op = _operator(x, pointwise, time_taps, freq_taps, None, dilation)
    return _backward(grad, x, op, needs_x)


def sep_conv2d_block_backward(
    grad: Tensor,
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor,
    dilation: int,
    pool: int,
    needs_x: bool,
) -> Gradients:
    op = _operator(x, pointwise, time_taps, freq_taps, bias, dilation, pool, relu=True)
    if pool not in POOLS:
        grad, op = _before_pooling(grad, x, op)
    return _backward(grad, x, op, needs_x)


def _operator(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor | None,
    dilation: int,
    pool: int = 1,
    *,
    relu: bool = False,
    product: torch.dtype | None = None,
) -> Operator:
    bias = None if bias is None else bias.contiguous()
    weights = (pointwise.contiguous(), time_taps.contiguous(), freq_taps.contiguous(), bias)
    return Operator(*weights, dilation, pool, relu, product or x.dtype)


def _loaded(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    stripes: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    load = Load(
        None if scale is None else scale.contiguous(),
        None if shift is None else shift.contiguous(),
        None if stripes is None else stripes.contiguous(),
        0 if stripes is None else stripes.shape[1],
    )
    y = new_map(x, tuple(x.shape), dtype)
    if y.numel() > 0:
        with launch.on_device_of(x):
            launch.loaded(x, y, load).run()
    return y


def _forward(x: Tensor, op: Operator, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A map of `dtype` in the memory format of `like`, whose dtype is the default."""
    n, channels, frames, bins = x.shape[0], op.pointwise.shape[0], *x.shape[2:]
    y = new_map(like, (n, channels, frames // op.pool, bins // op.pool), dtype or like.dtype)
    if y.numel() == 0:
        return y
    if op.pool in POOLS:
        launch.run("forward", op, x, launch.forward(x, y, op))
        return y
    # Other windows: the map before pooling keeps the digits of the sums, so y is rounded once.
    whole = _forward(x, op.with_pool(1, relu=op.relu), like, accumulator(y.dtype))
    windows = whole.unfold(2, op.pool, op.pool).unfold(3, op.pool, op.pool)
    return y.copy_(windows.mean(dim=(4, 5)))


def _before_pooling(grad: Tensor, x: Tensor, op: Operator) -> tuple[Tensor, Operator]:
    """Operator and gradient as they are before ReLU and pooling, for windows not in POOLS."""
    wide = accumulator(x.dtype)
    y = _forward(x, op.with_pool(1, relu=False), x, wide)
    g = grad.to(wide).repeat_interleave(op.pool, 2).repeat_interleave(op.pool, 3) / op.pool**2
    g = pad(g, (0, y.shape[3] - g.shape[3], 0, y.shape[2] - g.shape[2]))
    return torch.where(y <= 0, 0, g), op.with_pool(1, relu=False)


def _backward(grad: Tensor, x: Tensor, op: Operator, needs_x: bool) -> Gradients:
    wide = accumulator(x.dtype)
    channels, channels_in = op.pointwise.shape
    positive = None
    if op.relu:
        shape = (x.shape[0], channels, *x.shape[2:])
        positive = new_map(x, shape, torch.int8)
    empty = 0 in (x.shape[0], channels, x.shape[2] // op.pool, x.shape[3] // op.pool)

    partial: list[Tensor] = []
    if not empty:
        launch.run("sums", op, x, launch.sums(x, grad, positive, op, partial))
    rows = partial[0].sum(0) if partial else x.new_zeros(SUMS, channels, dtype=wide)
    up, centre, down, left, right = rows[:5]
    d_bias = rows[5].clone()  # an output of its own, not a view
    d_time, d_freq = torch.stack([up, centre, down], 1), torch.stack([left, centre, right], 1)

    if channels_in == 1:  # the sums are of g times x
        taps = torch.cat([op.time_taps, op.freq_taps], 1).to(wide)
        d_pointwise = (taps * torch.cat([d_time, d_freq], 1)).sum(1, keepdim=True)
        d_time, d_freq = d_time * op.pointwise, d_freq * op.pointwise
    elif empty or channels_in == 0:
        d_pointwise = torch.zeros_like(op.pointwise)
    else:
        plan = launch.pointwise_gradient(x, grad, positive, op, partial)
        launch.run("pointwise_gradient", op, x, plan)
        d_pointwise = partial[0].sum(0)

    dx = new_map(x, tuple(x.shape), x.dtype) if needs_x else x.new_empty(0)
    if needs_x and dx.numel() > 0:
        if empty:
            dx.zero_()
        else:
            launch.run("input_gradient", op, x, launch.input_gradient(grad, positive, dx, op))
    d_pointwise, d_time, d_freq = (d.to(x.dtype) for d in (d_pointwise, d_time, d_freq))
    return dx, d_pointwise, d_time, d_freq, d_bias.to(x.dtype)
