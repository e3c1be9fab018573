"""The input as it is loaded: after the affine of each bin, and with the stripes set to 0."""

import triton
import triton.language as tl

from fastsep.triton.shared import pointers


@triton.jit
def load_kernel(x, y, load, size, BLOCK: tl.constexpr):
    """x and y (N, C, T, F): BLOCK positions of a channel a program."""
    blocks = tl.cdiv(size.frames * size.bins, BLOCK)
    index = tl.program_id(0)
    position = index % blocks * BLOCK + tl.arange(0, BLOCK)
    index = index // blocks
    channel = index % size.channels_in + tl.arange(0, 1)
    n = index // size.channels_in
    t, f = position // size.bins, position % size.bins
    there = t < size.frames
    value = tl.load(pointers(x, n, channel, t, f), mask=there[None, :], other=0.0)
    value = value.to(y.data.dtype.element_ty)
    if load.scale is not None:
        scale = tl.load(load.scale + f, mask=there, other=0.0).to(value.dtype)
        shift = tl.load(load.shift + f, mask=there, other=0.0).to(value.dtype)
        value = value * scale[None, :] + shift[None, :]
    if load.stripes is not None:
        stripe = load.stripes + n.to(tl.int64) * load.num_stripes * 3
        for _ in range(load.num_stripes):
            axis = tl.load(stripe)
            position = tl.where(axis == 0, t, f)
            hit = (position >= tl.load(stripe + 1)) & (position < tl.load(stripe + 2))
            hit = hit & ((axis == 0) | (axis == 1))
            value = tl.where(hit[None, :], 0.0, value)  # a product would keep NaN and inf
            stripe += 3
    tl.store(pointers(y, n, channel, t, f), value, mask=there[None, :])
