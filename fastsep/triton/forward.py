"""The operator and the block: one pass from x to y, nothing in between written to memory.

A program owns some channels of a window of bins and walks along time. From the tiles of z
`DILATION` rows behind, here and ahead it finishes one group of rows: taps, bias, ReLU, pooling.
Where the pooling divides the dilation the next group needs one new tile of z, so that every z is
computed once; elsewhere three.
"""

import triton
import triton.language as tl

from fastsep.triton.shared import aside, pointers, project, start


@triton.jit(do_not_specialize=["spans", "length", "windows"])
def forward_kernel(x, y, weights, size, load, spans, length, windows, M: tl.constexpr):
    """x (N, Cin, T, F) -> y (N, Cout, T // POOL, F // POOL)."""
    C: tl.constexpr = M.C
    POOL: tl.constexpr = M.POOL
    BINS: tl.constexpr = M.BINS
    here, taps, bias, row, first_up, first_centre = start(
        x, load, weights, size, spans, length, windows, M
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
            up = project(x, load, weights, size, n, channel, t - M.DILATION, f, M)
            centre = project(x, load, weights, size, n, channel, t, f, M)
        down = project(x, load, weights, size, n, channel, t + M.DILATION, f, M)
        value = taps.centre * centre + bias
        value += taps.middle * centre
        value += taps.up * up + taps.down * down
        value += taps.left * aside(centre, x, load, weights, size, here, t, -M.DILATION, M)
        value += taps.right * aside(centre, x, load, weights, size, here, t, M.DILATION, M)
        if M.RELU:
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        if M.POOL > 1:
            pooled = value.reshape(C, POOL, BINS // POOL, POOL)
            value = tl.sum(tl.sum(pooled, axis=3), axis=1) * (1.0 / (POOL * POOL))
        at = pointers(y, n, channel, tl.zeros_like(bin_out) + q, bin_out)
        tl.store(at, value.to(y.data.dtype.element_ty), mask=owned)
        if M.CARRY:
            up, centre = centre, down
