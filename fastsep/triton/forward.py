"""The operator and the block: one pass from x to y, nothing in between written to memory.

A program owns some channels of a window of bins and walks along time. From the tiles of z
`DILATION` rows behind, here and ahead it finishes one group of rows: taps, bias, ReLU, pooling.
Where the pooling divides the dilation the next group needs one new tile of z, so that every z is
computed once; elsewhere three.
"""

import triton
import triton.language as tl

from fastsep.triton.shared import (
    along_time,
    aside,
    load_bias,
    load_lone,
    load_taps,
    lone_cross,
    lone_y,
    place,
    pointers,
    project,
    start,
)


@triton.jit(do_not_specialize=["spans", "length", "windows"])
def forward_kernel(x, y, weights, size, spans, length, windows, M: tl.constexpr):
    """x (N, Cin, T, F) -> y (N, Cout, T // POOL, F // POOL)."""
    C: tl.constexpr = M.C
    POOL: tl.constexpr = M.POOL
    BINS: tl.constexpr = M.BINS
    here, taps, bias, row, first_up, first_centre = start(
        x, weights, size, spans, length, windows, M
    )
    n, channel, f = here.n, here.channel, here.f
    if M.CARRY:
        up, centre = first_up, first_centre

    bin_out = here.first_bin // M.POOL + tl.arange(0, M.BINS // M.POOL)
    owned = (bin_out * M.POOL >= here.first_bin + M.HALO) & (
        bin_out * M.POOL < here.first_bin + M.BINS - M.HALO
    )
    owned = (channel < size.channels_out)[:, None] & (owned & (bin_out < size.bins // M.POOL))[
        None, :
    ]
    for j in range(here.first, here.stop):
        q = here.phase + M.STEP * j
        t = q * M.POOL + row
        if not M.CARRY:
            up = project(x, weights, size, n, channel, t - M.DILATION, f, M)
            centre = project(x, weights, size, n, channel, t, f, M)
        down = project(x, weights, size, n, channel, t + M.DILATION, f, M)
        value = along_time(up, centre, down, taps, bias)
        value += taps.left * aside(centre, x, weights, size, here, t, -M.DILATION, M)
        value += taps.right * aside(centre, x, weights, size, here, t, M.DILATION, M)
        if M.RELU:
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        if M.POOL > 1:
            pooled = value.reshape(C, POOL, BINS // POOL, POOL)
            value = tl.sum(tl.sum(pooled, axis=3), axis=1) * (1.0 / (POOL * POOL))
        at = pointers(y, n, channel, tl.zeros_like(bin_out) + q, bin_out)
        tl.store(at, value.to(y.data.dtype.element_ty), mask=owned)
        if M.CARRY:
            up, centre = centre, down


@triton.jit(do_not_specialize=["spans", "length", "windows"])
def lone_kernel(x, y, weights, size, spans, length, windows, M: tl.constexpr):
    """As forward_kernel for one input channel, whose x serves all channels of a tile: columns are
    pooled bins, positions of a pooling window follow each other, and nothing is exchanged."""
    C: tl.constexpr = M.C
    BINS: tl.constexpr = M.BINS
    POOL: tl.constexpr = M.POOL
    here = place(size, spans, length, windows, M)
    taps = load_taps(weights, size, here.channel, M)
    bias = load_bias(weights, size, here.channel, M)
    p = load_lone(weights, size, here.channel, M)
    owned = (here.channel < size.channels_out)[:, None] & (here.f < size.bins // M.POOL)[None, :]
    for q in range(here.first, here.stop):
        total = tl.zeros((C, BINS), M.ACC)
        for i in tl.static_range(POOL):
            t = tl.zeros_like(here.f) + (q * M.POOL + i)
            for k in tl.static_range(POOL):
                f = here.f * M.POOL + k
                up, centre, down, left, right = lone_cross(x, size, here.n, t, f, M)
                value = lone_y(up, centre, down, left, right, p, taps, bias, size, t, f, M)
                if M.RELU:
                    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
                total += value
        total *= 1.0 / (M.POOL * M.POOL)
        at = pointers(y, here.n, here.channel, tl.zeros_like(here.f) + q, here.f)
        tl.store(at, total.to(y.data.dtype.element_ty), mask=owned)
