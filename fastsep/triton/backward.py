"""Gradients: z is recomputed, partial sums are added in a fixed order.

With g = dL/dy at every position before pooling (0 where ReLU cut), and dz the cross of g turned
around, the gradients are sums of g times the five neighbours of z (taps, bias), of dz times x
(pointwise) and pointwise^T dz (x).
"""

import triton
import triton.language as tl

from fastsep.triton.shared import (
    add_product,
    aside,
    cross,
    inside,
    load_bias,
    load_input,
    load_lone,
    load_taps,
    lone_cross,
    lone_y,
    place,
    pointers,
    project,
    start,
)

SUMS = 6  # of g times z above, here, below, left and right, and of g itself


@triton.jit(do_not_specialize=["spans", "length", "windows"])
def sums_kernel(x, grad, positive, sums, weights, size, spans, length, windows, M: tl.constexpr):
    """Walks as the forward kernel does. Writes the SUMS of each program to sums (programs of a
    channel block, SUMS, Cout), and with ReLU whether y > 0 to positive (N, Cout, T, F)."""
    C: tl.constexpr = M.C
    COLUMNS: tl.constexpr = M.COLUMNS
    here, taps, bias, row, first_up, first_centre = start(
        x, weights, size, spans, length, windows, M
    )
    n, channel, f = here.n, here.channel, here.f
    if M.CARRY:
        up, centre = first_up, first_centre
    of_up = tl.zeros((C, COLUMNS), M.ACC)
    of_centre = tl.zeros((C, COLUMNS), M.ACC)
    of_down = tl.zeros((C, COLUMNS), M.ACC)
    of_left = tl.zeros((C, COLUMNS), M.ACC)
    of_right = tl.zeros((C, COLUMNS), M.ACC)
    of_one = tl.zeros((C, COLUMNS), M.ACC)
    for j in range(here.first, here.stop):
        t = (here.phase + M.STEP * j) * M.POOL + row
        if not M.CARRY:
            up = project(x, weights, size, n, channel, t - M.DILATION, f, M)
            centre = project(x, weights, size, n, channel, t, f, M)
        down = project(x, weights, size, n, channel, t + M.DILATION, f, M)
        left = aside(centre, x, weights, size, here, t, -M.DILATION, M)
        right = aside(centre, x, weights, size, here, t, M.DILATION, M)
        mine = here.owned & (f < size.bins // M.POOL * M.POOL)
        mine = (channel < size.channels_out)[:, None] & mine[None, :]
        at = pointers(grad, n, channel, t // M.POOL, f // M.POOL)
        g = tl.load(at, mask=mine, other=0.0).to(M.ACC) * (1.0 / (M.POOL * M.POOL))
        if M.RELU:
            keep = kept(cross(up, centre, down, left, right, taps, bias))
            tl.store(pointers(positive, n, channel, t, f), keep.to(tl.int8), mask=mine)
            g = tl.where(keep, g, 0.0)
        of_up += g * up
        of_centre += g * centre
        of_down += g * down
        of_left += g * left
        of_right += g * right
        of_one += g
        if M.CARRY:
            up, centre = centre, down
    write(sums, size, channel, of_up, of_centre, of_down, of_left, of_right, of_one, M)


@triton.jit(do_not_specialize=["spans", "length", "windows"])
def lone_sums_kernel(
    x, grad, positive, sums, weights, size, spans, length, windows, M: tl.constexpr
):
    """As sums_kernel, for one input channel: walks as lone_kernel does; z stands for x."""
    C: tl.constexpr = M.C
    BINS: tl.constexpr = M.BINS
    POOL: tl.constexpr = M.POOL
    here = place(size, spans, length, windows, M)
    taps = load_taps(weights, size, here.channel, M)
    bias = load_bias(weights, size, here.channel, M)
    p = load_lone(weights, size, here.channel, M)
    n, channel = here.n, here.channel
    mine = (channel < size.channels_out)[:, None] & (here.f < size.bins // M.POOL)[None, :]
    of_up = tl.zeros((C, BINS), M.ACC)
    of_centre = tl.zeros((C, BINS), M.ACC)
    of_down = tl.zeros((C, BINS), M.ACC)
    of_left = tl.zeros((C, BINS), M.ACC)
    of_right = tl.zeros((C, BINS), M.ACC)
    of_one = tl.zeros((C, BINS), M.ACC)
    for q in range(here.first, here.stop):
        at = pointers(grad, n, channel, tl.zeros_like(here.f) + q, here.f)
        whole = tl.load(at, mask=mine, other=0.0).to(M.ACC) * (1.0 / (M.POOL * M.POOL))
        for i in tl.static_range(POOL):
            for k in tl.static_range(POOL):
                t = tl.zeros_like(here.f) + (q * M.POOL + i)
                f = here.f * M.POOL + k
                up, centre, down, left, right = lone_cross(x, size, n, t, f, M)
                g = whole
                if M.RELU:
                    y = lone_y(up, centre, down, left, right, p, taps, bias, size, t, f, M)
                    keep = kept(y)
                    tl.store(pointers(positive, n, channel, t, f), keep.to(tl.int8), mask=mine)
                    g = tl.where(keep, g, 0.0)
                of_up += g * up
                of_centre += g * centre
                of_down += g * down
                of_left += g * left
                of_right += g * right
                of_one += g
    write(sums, size, channel, of_up, of_centre, of_down, of_left, of_right, of_one, M)


@triton.jit
def kept(y):
    """Where ReLU lets the gradient pass: as in PyTorch, where y is NaN too."""
    return (y > 0) | (y != y)


@triton.jit
def write(sums, size, channel, up, centre, down, left, right, one, M: tl.constexpr):
    """The sums over the columns, into a program's row of sums (programs, SUMS, Cout)."""
    program = tl.program_id(0) // tl.cdiv(size.channels_out, M.C)
    at = sums + program.to(tl.int64) * (6 * size.channels_out) + channel
    mask = channel < size.channels_out
    tl.store(at, tl.sum(up, axis=1), mask=mask)
    tl.store(at + size.channels_out, tl.sum(centre, axis=1), mask=mask)
    tl.store(at + 2 * size.channels_out, tl.sum(down, axis=1), mask=mask)
    tl.store(at + 3 * size.channels_out, tl.sum(left, axis=1), mask=mask)
    tl.store(at + 4 * size.channels_out, tl.sum(right, axis=1), mask=mask)
    tl.store(at + 5 * size.channels_out, tl.sum(one, axis=1), mask=mask)


@triton.jit
def load_g(grad, positive, size, n, channel, t, f, M: tl.constexpr):
    """g, 0 outside the map and in rows and columns that pooling drops."""
    there = inside(size, t, f)
    if M.POOL > 1:
        there &= (t < size.frames // M.POOL * M.POOL) & (f < size.bins // M.POOL * M.POOL)
    mask = (channel < size.channels_out)[:, None] & there[None, :]
    at = pointers(grad, n, channel, t // M.POOL, f // M.POOL)
    g = tl.load(at, mask=mask, other=0.0).to(M.ACC) * (1.0 / (M.POOL * M.POOL))
    if M.RELU:
        keep = tl.load(pointers(positive, n, channel, t, f), mask=mask, other=0)
        g = tl.where(keep != 0, g, 0.0)
    return g


@triton.jit
def through(tap, grad, positive, size, n, channel, t, f, M: tl.constexpr):
    """What one tap hands back from t and f; from outside the map nothing, even if it is inf."""
    g = load_g(grad, positive, size, n, channel, t, f, M)
    return tl.where(inside(size, t, f)[None, :], tap * g, 0.0)


@triton.jit
def load_dz(grad, positive, taps, size, n, channel, t, f, M: tl.constexpr):
    """dz at channel (channels,) and at t and f, each (columns,)."""
    D: tl.constexpr = M.DILATION
    g = load_g(grad, positive, size, n, channel, t, f, M)
    dz = taps.centre * g
    dz += taps.middle * g
    dz += through(taps.up, grad, positive, size, n, channel, t + D, f, M)
    dz += through(taps.down, grad, positive, size, n, channel, t - D, f, M)
    dz += through(taps.left, grad, positive, size, n, channel, t, f + D, M)
    dz += through(taps.right, grad, positive, size, n, channel, t, f - D, M)
    return dz


@triton.jit
def input_kernel(grad, positive, dx, weights, size, M: tl.constexpr):
    """dx (N, Cin, T, F) = pointwise^T dz: C input channels of BINS positions a program."""
    C: tl.constexpr = M.C
    BINS: tl.constexpr = M.BINS
    blocks = tl.cdiv(size.channels_in, C)
    index = tl.program_id(0)
    channel_in = index % blocks * M.C + tl.arange(0, M.C)
    index = index // blocks
    per_clip = tl.cdiv(size.frames * size.bins, M.BINS)
    n = index // per_clip
    position = index % per_clip * M.BINS + tl.arange(0, M.BINS)
    t, f = position // size.bins, position % size.bins
    K: tl.constexpr = M.K
    total = tl.zeros((K if M.LONE else C, BINS), M.ACC)
    for first in range(0, size.channels_out, M.K):
        channel = first + tl.arange(0, M.K)
        taps = load_taps(weights, size, channel, M)
        dz = load_dz(grad, positive, taps, size, n, channel, t, f, M)
        if M.LONE:
            total += load_lone(weights, size, channel, M) * dz
        else:
            at = weights.pointwise + channel.to(tl.int64)[None, :] * size.channels_in
            mask = (channel_in < size.channels_in)[:, None]
            mask = mask & (channel < size.channels_out)[None, :]
            p = tl.load(at + channel_in[:, None], mask=mask, other=0.0).to(M.DOT)
            total = add_product(total, p, dz.to(M.DOT), M)
    if M.LONE:
        total = tl.sum(total, axis=0)[None, :]
    mask = (channel_in < size.channels_in)[:, None] & (t < size.frames)[None, :]
    tl.store(pointers(dx, n, channel_in, t, f), total.to(dx.data.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["clips", "splits"])
def pointwise_kernel(x, grad, positive, sums, weights, size, clips, splits, M: tl.constexpr):
    """Partial sums (splits, Cout, Cin) of dz x^T: C by K channels of every splits-th block of BINS
    positions a program."""
    C: tl.constexpr = M.C
    K: tl.constexpr = M.K
    rows, columns = tl.cdiv(size.channels_out, M.C), tl.cdiv(size.channels_in, M.K)
    index = tl.program_id(0)
    channel_in = index % columns * M.K + tl.arange(0, M.K)
    index = index // columns
    channel = index % rows * M.C + tl.arange(0, M.C)
    split = index // rows
    taps = load_taps(weights, size, channel, M)
    per_clip = tl.cdiv(size.frames * size.bins, M.BINS)
    total = tl.zeros((C, K), M.ACC)
    for block in range(split, clips * per_clip, splits):
        n = block // per_clip
        position = block % per_clip * M.BINS + tl.arange(0, M.BINS)
        t, f = position // size.bins, position % size.bins
        dz = load_dz(grad, positive, taps, size, n, channel, t, f, M)
        dz = tl.where((t < size.frames)[None, :], dz, 0.0).to(M.DOT)  # taps reach past the map
        loaded = load_input(x, size, n, channel_in, t, f).to(M.DOT)
        total = add_product(total, dz, tl.trans(loaded), M)
    at = sums + (split * size.channels_out + channel).to(tl.int64)[:, None] * size.channels_in
    mask = (channel < size.channels_out)[:, None] & (channel_in < size.channels_in)[None, :]
    tl.store(at + channel_in[None, :], total, mask=mask)
