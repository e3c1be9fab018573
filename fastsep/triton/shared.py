"""What the kernels share: maps as they see them, a tile of z.

A tile is (channels, columns), its columns `POOL` rows of time side by side, `BINS` mel bins each:
one matrix product serves all rows of a pooling window, a time tap is another tile `DILATION` rows
away, and a frequency tap is a gather along the columns.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Map(NamedTuple):
    """A feature map (N, C, T, F): its data and its strides in elements."""

    data: Any
    n: int
    c: int
    t: int
    f: int


class Size(NamedTuple):
    """Of the operator: its channels, and the frames and bins of its input."""

    channels_in: int
    channels_out: int
    frames: int
    bins: int


class Weights(NamedTuple):
    """pointwise (Cout, Cin), time_taps and freq_taps (Cout, 3), bias (Cout,) or None."""

    pointwise: Any
    time_taps: Any
    freq_taps: Any
    bias: Any


class Load(NamedTuple):
    """As the input is read: scale and shift (F,) or None, stripes (N, num_stripes, 3) or None."""

    scale: Any
    shift: Any
    stripes: Any
    num_stripes: int


class Mode(NamedTuple):
    """What a kernel is compiled for."""

    DILATION: int
    POOL: int
    RELU: bool
    LONE: bool  # one input channel: no matrix product
    CARRY: bool  # each tile of z serves as the one behind, here and ahead in turn
    GATHER: bool  # frequency taps read the tile; otherwise they are tiles of their own
    HALO: int  # columns on each side of a window that only taps reach
    PRECISION: str  # of float32 products: "ieee" or "tf32"
    DOT: Any  # dtype of the factors of a matrix product
    ACC: Any  # dtype of sums
    C: int  # channels of a tile
    BINS: int  # bins of a row of a tile
    COLUMNS: int  # of a tile: POOL * BINS
    K: int  # input channels a step of the matrix product
    STEP: int  # groups of POOL rows from one tile to the next


class Place(NamedTuple):
    """A program's share: clip n, channels, and the groups of POOL rows phase + STEP j for
    first <= j < stop. f: the bin of each column; owned: whether the program answers for it."""

    n: Any
    channel: Any
    phase: Any
    first: Any
    stop: Any
    first_bin: Any
    f: Any
    owned: Any


class Start(NamedTuple):
    """What a program that walks along time sets out with: its place, coefficients, and the row of
    each column in a tile. up, centre: with M.CARRY the first tiles of z."""

    here: Any
    taps: Any
    bias: Any
    row: Any
    up: Any
    centre: Any


class Taps(NamedTuple):
    """Coefficients of the channels of a tile, (channels, 1) each. The centre taps, of time and of
    frequency, stay apart: infinity meets each of them, and inf - inf is NaN."""

    up: Any
    centre: Any
    down: Any
    left: Any
    middle: Any
    right: Any


@triton.jit
def place(size, spans, length, windows, M: tl.constexpr):
    """Programs that read the same input follow each other: channels, windows, spans, clips."""
    index = tl.program_id(0)
    blocks = tl.cdiv(size.channels_out, M.C)
    channel = index % blocks * M.C + tl.arange(0, M.C)
    index = index // blocks
    first_bin = index % windows * (M.BINS - 2 * M.HALO) - M.HALO
    index = index // windows
    span = index % spans
    n = index // spans
    phase = span % M.STEP
    first = span // M.STEP * length
    groups = tl.cdiv(size.frames // M.POOL - phase, M.STEP)
    column = tl.arange(0, M.COLUMNS) % M.BINS
    return Place(
        n,
        channel,
        phase,
        first,
        tl.minimum(first + length, groups),
        first_bin,
        first_bin + column,
        (column >= M.HALO) & (column < M.BINS - M.HALO),
    )


@triton.jit
def pointers(map, n, channel, t, f):
    """(channels, columns): the elements at channel (channels,) and at t and f, each (columns,)."""
    offset = t.to(tl.int64) * map.t + f.to(tl.int64) * map.f
    clip = map.data + n.to(tl.int64) * map.n
    return clip + channel.to(tl.int64)[:, None] * map.c + offset[None, :]


@triton.jit
def inside(size, t, f):
    return (t >= 0) & (t < size.frames) & (f >= 0) & (f < size.bins)


@triton.jit
def load_input(x, size, n, channel, t, f):
    """x, 0 outside the map."""
    mask = (channel < size.channels_in)[:, None] & inside(size, t, f)[None, :]
    return tl.load(pointers(x, n, channel, t, f), mask=mask, other=0.0)


@triton.jit
def add_product(total, a, b, M: tl.constexpr):
    """total + a @ b."""
    if a.dtype == tl.float64:  # which tl.dot cannot compile for every layout
        total += tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    else:
        total = tl.dot(a, b, total, input_precision=M.PRECISION, out_dtype=M.ACC)
    return total


@triton.jit
def project(x, weights, size, n, channel, t, f, M: tl.constexpr):
    """A tile of z = pointwise x, exactly 0 outside the map."""
    CHANNELS: tl.constexpr = M.C
    COLUMNS: tl.constexpr = M.COLUMNS
    z = tl.zeros((CHANNELS, COLUMNS), M.ACC)
    for first in range(0, size.channels_in, M.K):
        k = first + tl.arange(0, M.K)
        at = weights.pointwise + channel.to(tl.int64)[:, None] * size.channels_in + k[None, :]
        mask = (channel < size.channels_out)[:, None] & (k < size.channels_in)[None, :]
        p = tl.load(at, mask=mask, other=0.0).to(M.DOT)
        loaded = load_input(x, size, n, k, t, f).to(M.DOT)
        z = add_product(z, p, loaded, M)
    return tl.where(inside(size, t, f)[None, :], z, 0.0)  # which an inf weight would break


@triton.jit
def lone_cross(x, size, n, t, f, M: tl.constexpr):
    """x where the taps meet it at t and f, each (columns,), of one input channel: five
    (1, columns)."""
    lone = tl.arange(0, 1)
    up = load_input(x, size, n, lone, t - M.DILATION, f).to(M.ACC)
    centre = load_input(x, size, n, lone, t, f).to(M.ACC)
    down = load_input(x, size, n, lone, t + M.DILATION, f).to(M.ACC)
    left = load_input(x, size, n, lone, t, f - M.DILATION).to(M.ACC)
    right = load_input(x, size, n, lone, t, f + M.DILATION).to(M.ACC)
    return up, centre, down, left, right


@triton.jit
def lone_y(up, centre, down, left, right, p, taps, bias, size, t, f, M: tl.constexpr):
    """y before ReLU from what `lone_cross` gives. p (channels, 1): the pointwise weights, which x
    meets before the taps do: their products with these could overflow where y does not."""
    D: tl.constexpr = M.DILATION
    return cross(
        tl.where(inside(size, t - D, f)[None, :], p * up, 0.0),  # which an inf weight would break
        p * centre,
        tl.where(inside(size, t + D, f)[None, :], p * down, 0.0),
        tl.where(inside(size, t, f - D)[None, :], p * left, 0.0),
        tl.where(inside(size, t, f + D)[None, :], p * right, 0.0),
        taps,
        bias,
    )


@triton.jit
def along_time(up, centre, down, taps, bias):
    """What is not to the sides of y before ReLU."""
    y = taps.centre * centre + bias
    y += taps.middle * centre
    y += taps.up * up  # a fused multiply-add each
    y += taps.down * down
    return y


@triton.jit
def cross(up, centre, down, left, right, taps, bias):
    """y before ReLU."""
    return along_time(up, centre, down, taps, bias) + taps.left * left + taps.right * right


@triton.jit
def load_taps(weights, size, channel, M: tl.constexpr):
    mask = channel < size.channels_out
    a, b = weights.time_taps + channel * 3, weights.freq_taps + channel * 3
    return Taps(
        tl.load(a, mask=mask, other=0.0).to(M.ACC)[:, None],
        tl.load(a + 1, mask=mask, other=0.0).to(M.ACC)[:, None],
        tl.load(a + 2, mask=mask, other=0.0).to(M.ACC)[:, None],
        tl.load(b, mask=mask, other=0.0).to(M.ACC)[:, None],
        tl.load(b + 1, mask=mask, other=0.0).to(M.ACC)[:, None],
        tl.load(b + 2, mask=mask, other=0.0).to(M.ACC)[:, None],
    )


@triton.jit
def load_lone(weights, size, channel, M: tl.constexpr):
    """The pointwise weights of one input channel, (channels, 1)."""
    p = tl.load(weights.pointwise + channel, mask=channel < size.channels_out, other=0.0)
    return p.to(M.ACC)[:, None]


@triton.jit
def load_bias(weights, size, channel, M: tl.constexpr):
    bias = tl.zeros_like(channel).to(M.ACC)
    if weights.bias is not None:
        mask = channel < size.channels_out
        bias = tl.load(weights.bias + channel, mask=mask, other=0.0).to(M.ACC)
    return bias[:, None]


@triton.jit
def aside(z, x, weights, size, here, t, by: tl.constexpr, M: tl.constexpr):
    """z at `by` bins further on; M.GATHER: as far as the tile reaches."""
    if M.GATHER:
        column = tl.arange(0, M.COLUMNS)
        there = column % M.BINS + by
        index = tl.minimum(tl.maximum(column + by, 0), M.COLUMNS - 1)
        moved = tl.gather(z, tl.broadcast_to(index[None, :], z.shape), 1)
        result = tl.where(((there >= 0) & (there < M.BINS))[None, :], moved, 0.0)
    else:
        result = project(x, weights, size, here.n, here.channel, t, here.f + by, M)
    return result


@triton.jit
def start(x, weights, size, spans, length, windows, M: tl.constexpr):
    """What every walk along time begins with."""
    here = place(size, spans, length, windows, M)
    taps = load_taps(weights, size, here.channel, M)
    bias = load_bias(weights, size, here.channel, M)
    row = tl.arange(0, M.COLUMNS) // M.BINS
    up, centre = bias, bias
    if M.CARRY:
        t = (here.phase + M.STEP * here.first) * M.POOL + row
        up = project(x, weights, size, here.n, here.channel, t - M.DILATION, here.f, M)
        centre = project(x, weights, size, here.n, here.channel, t, here.f, M)
    return Start(here, taps, bias, row, up, centre)
