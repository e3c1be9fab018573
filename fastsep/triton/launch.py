"""From tensors to kernels: what is compiled, how the work is shared, which tile is used."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsep.layouts import accumulator
from fastsep.triton.backward import (
    SUMS,
    input_kernel,
    lone_sums_kernel,
    pointwise_kernel,
    sums_kernel,
)
from fastsep.triton.forward import forward_kernel, lone_kernel
from fastsep.triton.load import load_kernel
from fastsep.triton.shared import Load, Map, Mode, Size, Weights
from fastsep.triton.tiles import Launch, Tile
from fastsep.triton.tuning import choose

POOLS = (1, 2, 4)  # windows of which a tile, a power of two of columns wide, holds whole ones
LOADED = 1024  # positions a program
WAVES = 4  # programs wanted for every multiprocessor, so that the last ones to end matter little
_TRITON = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class Walk(NamedTuple):
    """How the programs share the output: spans of at most `length` steps in time by windows of
    bins."""

    spans: int
    length: int
    windows: int

    def programs(self, x: Tensor) -> int:
        """For a block of channels."""
        return x.shape[0] * self.spans * self.windows


@dataclass(frozen=True)
class Operator:
    """One call's operator: contiguous weights, geometry, and the dtype that the factors of the 1x1
    convolution are rounded to."""

    pointwise: Tensor
    time_taps: Tensor
    freq_taps: Tensor
    bias: Tensor | None
    dilation: int
    pool: int
    relu: bool
    product: torch.dtype

    @property
    def weights(self) -> Weights:
        return Weights(self.pointwise, self.time_taps, self.freq_taps, self.bias)

    def with_pool(self, pool: int, *, relu: bool) -> "Operator":
        return replace(self, pool=pool, relu=relu)

    def size(self, x: Tensor) -> Size:
        return Size(x.shape[1], self.pointwise.shape[0], x.shape[2], x.shape[3])

    @property
    def arithmetic(self) -> str:
        """A name for what a tile's speed depends on besides shapes."""
        if self.product == torch.float64:
            return "float64"
        if self.product in (torch.float16, torch.bfloat16):
            return "half"
        return _precision()

    def mode(self, x: Tensor, tile: Tile) -> Mode:
        size = self.size(x)
        return Mode(
            DILATION=min(self.dilation, max(size.frames, size.bins, 1)),  # further taps read 0 too
            POOL=self.pool,
            RELU=self.relu,
            LONE=size.channels_in == 1,
            CARRY=False,
            GATHER=False,
            HALO=0,
            PRECISION="tf32" if self.arithmetic == "tf32" else "ieee",
            DOT=_dot_dtype(self.product),
            ACC=_TRITON[accumulator(self.product)],
            C=tile.channels,
            BINS=tile.columns,
            COLUMNS=tile.columns,
            K=tile.depth,
            STEP=1,
        )

    def walking(self, x: Tensor, tile: Tile) -> tuple[Mode, Walk]:
        """For kernels that walk along time: one input channel's with columns of pooled bins, the
        others with tiles of z."""
        size = self.size(x)
        if size.channels_in == 1:
            mode = self.mode(x, tile)
            return mode, self._cut(x, mode, triton.cdiv(size.bins // mode.POOL, mode.BINS))
        bins = min(max(tile.columns // self.pool, 16), triton.next_power_of_2(max(size.bins, 16)))
        mode = self.mode(x, tile)
        carry = mode.DILATION % mode.POOL == 0
        halo = triton.cdiv(mode.DILATION, mode.POOL) * mode.POOL
        whole = bins >= size.bins
        gather = whole or 4 * halo <= bins
        halo = 0 if whole or not gather else halo
        step = mode.DILATION // mode.POOL if carry else 1
        mode = mode._replace(
            CARRY=carry, GATHER=gather, HALO=halo, STEP=step, BINS=bins, COLUMNS=mode.POOL * bins
        )
        return mode, self._cut(x, mode, triton.cdiv(size.bins, bins - 2 * halo))

    def _cut(self, x: Tensor, mode: Mode, windows: int) -> Walk:
        """Time cut so that there are programs for all multiprocessors."""
        size = self.size(x)
        groups = triton.cdiv(size.frames // mode.POOL, mode.STEP)  # of the longest phase
        others = x.shape[0] * windows * mode.STEP * triton.cdiv(size.channels_out, mode.C)
        wanted = triton.cdiv(WAVES * _multiprocessors(x.device), max(others, 1))
        length = max(triton.cdiv(groups, wanted), min(groups, 8), 1)  # a cut costs two tiles of z
        return Walk(triton.cdiv(groups, length) * mode.STEP, length, windows)


def run(kind: str, op: Operator, x: Tensor, plan: Callable[[Tile], Launch]) -> None:
    """Runs a kernel on the tensors' device with the tile that suits the layer."""
    with on_device_of(x):
        plan(choose(kind, op.size(x), op.pool, op.arithmetic, plan)).run()


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def loaded(x: Tensor, y: Tensor, load: Load) -> Launch:
    channels, frames, bins = x.shape[1:]
    programs = x.shape[0] * channels * triton.cdiv(frames * bins, LOADED)
    arguments = (_map(x), _map(y), load, Size(channels, channels, frames, bins), LOADED)
    return Launch(load_kernel, programs, arguments, Tile(1, LOADED, 1, 4, 1))


def forward(x: Tensor, y: Tensor, op: Operator) -> Callable[[Tile], Launch]:
    def plan(tile: Tile) -> Launch:
        mode, walk = op.walking(x, tile)
        size = op.size(x)
        arguments = (_map(x), _map(y), op.weights, size, *walk, mode)
        blocks = triton.cdiv(size.channels_out, mode.C)
        kernel = lone_kernel if mode.LONE else forward_kernel
        return Launch(kernel, walk.programs(x) * blocks, arguments, tile)

    return plan


def sums(
    x: Tensor, grad: Tensor, positive: Tensor | None, op: Operator, out: list[Tensor]
) -> Callable[[Tile], Launch]:
    """Appends the partial sums (programs, 6, Cout) of a run to `out`."""

    def plan(tile: Tile) -> Launch:
        mode, walk = op.walking(x, tile)
        size, programs = op.size(x), walk.programs(x)
        wide = accumulator(x.dtype)
        partial = torch.empty(programs, SUMS, size.channels_out, dtype=wide, device=x.device)
        out[:] = [partial]
        arguments = (_map(x), _map(grad), _map(positive), partial, op.weights, size, *walk, mode)
        blocks = triton.cdiv(size.channels_out, mode.C)
        kernel = lone_sums_kernel if mode.LONE else sums_kernel
        return Launch(kernel, programs * blocks, arguments, tile)

    return plan


def input_gradient(
    grad: Tensor, positive: Tensor | None, dx: Tensor, op: Operator
) -> Callable[[Tile], Launch]:
    def plan(tile: Tile) -> Launch:
        mode, size = op.mode(dx, tile), op.size(dx)
        if mode.LONE:
            mode = mode._replace(C=1)
        blocks = triton.cdiv(size.channels_in, mode.C)
        programs = dx.shape[0] * triton.cdiv(size.frames * size.bins, mode.BINS) * blocks
        arguments = (_map(grad), _map(positive), _map(dx), op.weights, size, mode)
        return Launch(input_kernel, programs, arguments, tile)

    return plan


def pointwise_gradient(
    x: Tensor, grad: Tensor, positive: Tensor | None, op: Operator, out: list[Tensor]
) -> Callable[[Tile], Launch]:
    """Appends the partial sums (splits, Cout, Cin) of a run to `out`."""

    def plan(tile: Tile) -> Launch:
        mode, size = op.mode(x, tile), op.size(x)
        blocks = triton.cdiv(size.channels_out, mode.C) * triton.cdiv(size.channels_in, mode.K)
        steps = x.shape[0] * triton.cdiv(size.frames * size.bins, mode.BINS)
        wanted = triton.cdiv(WAVES * _multiprocessors(x.device), max(blocks, 1))
        splits = max(min(wanted, steps), 1)
        wide = accumulator(x.dtype)
        partial = torch.empty(
            splits, size.channels_out, size.channels_in, dtype=wide, device=x.device
        )
        out[:] = [partial]
        arguments = (_map(x), _map(grad), _map(positive), partial, op.weights, size, x.shape[0],
                     splits, mode)  # fmt: skip
        return Launch(pointwise_kernel, blocks * splits, arguments, tile)

    return plan


def _dot_dtype(product: torch.dtype) -> Any:
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    if product == torch.bfloat16 and triton.knobs.runtime.interpret:
        return tl.float32
    return _TRITON[product]


def _map(x: Tensor | None) -> Map:
    return Map(None, 0, 0, 0, 0) if x is None else Map(x, *x.stride())


def _precision() -> str:
    """Of float32 products: IEEE, or TF32 where PyTorch's switch for matrix products allows it."""
    matmul = torch.backends.cuda.matmul
    try:
        allowed = matmul.allow_tf32
    except RuntimeError:  # the user set the newer switch, after which this one refuses to answer
        allowed = matmul.fp32_precision == "tf32"
    return "tf32" if allowed and not torch.version.hip else "ieee"


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":
        return 1  # Triton's interpreter
    if device.type == "meta":
        return 132  # compiling ahead of time: an H100's, so that the work is shared as it would be
    return torch.cuda.get_device_properties(device).multi_processor_count
