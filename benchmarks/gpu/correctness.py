"""The public functions against float64, on the network's shapes and on odd ones.

`cases(device, ...)` runs anywhere; `cuda_cases` adds what only a CUDA device has. Every check gives
"worst", the largest error as a share of what rounding allows, or raises.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import fastsep
from benchmarks import workloads
from benchmarks.gpu.results import Case, Row
from benchmarks.gpu.timing import settings
from benchmarks.workloads import LAYERS
from fastsep import BlockParameters, SepConvBlock, reference
from fastsep.testing import (
    GRADIENTS,
    TF32,
    forward_bound,
    gradient_bounds,
    random_walk,
    rounding_of,
    share_of_bound,
)

DTYPES = {"IEEE": torch.float32, "TF32": torch.float32, "bf16": torch.bfloat16,
          "fp16": torch.float16, "fp64": torch.float64}  # fmt: skip
# Relative errors of a product. 16-bit tensors multiply exactly in a forward pass; in the backward
# passes the gradient is a factor of its own, and the taps' gradients pass two products.
FORWARD = {"TF32": TF32}
BACKWARD = {"TF32": 2 * TF32, "bf16": rounding_of(torch.bfloat16),
            "fp16": rounding_of(torch.float16)}  # fmt: skip


class Shape(NamedTuple):
    cin: int
    cout: int
    frames: int
    bins: int
    dilation: int = 2
    pool: int = 2
    batch: int = 2


NETWORK = [Shape(*layer) for layer in LAYERS.values()]
ODD = [
    Shape(64, 128, 29, 40),
    Shape(64, 48, 7, 64, dilation=1),
    Shape(24, 10, 13, 257, dilation=3, pool=3),
    Shape(1, 10, 33, 40, dilation=3, pool=1),
    Shape(3, 48, 1, 32, dilation=2, pool=1),
    Shape(64, 64, 19, 1, dilation=1, pool=1),
    Shape(64, 64, 16, 32, batch=0),
]
FRAMES = 431


def cases(
    device: str,
    network: Sequence[Shape] = NETWORK,
    odd: Sequence[Shape] = ODD,
    frames: int = FRAMES,
    compiler: str = "inductor",
) -> list[Case]:
    """Checks on a device; frames: of the input of whole networks; compiler: torch.compile's."""

    def case(name: str, check: Callable[..., float], *args: object) -> Case:
        return Case(name, lambda: {"worst": check(device, *args)})

    small = odd[0]
    checks = [
        *((shape, p) for p in ("IEEE", "TF32", "bf16") for shape in network),
        *((shape, "IEEE") for shape in odd),
        *((small, p) for p in ("TF32", "bf16", "fp16", "fp64")),
    ]
    return [
        *(case(f"{kind}, {tuple(shape)}, {p}", check, shape, p)
          for shape, p in checks for kind, check in (("operator", operator), ("block", block))),
        *(case(f"stack under masks, {p}", stack, frames, p)
          for p in ("IEEE", "TF32", "bf16", "compute=bf16")),
        case("channels_last", channels_last, small),
        case("NaN", nan, small),
        case("same bits twice", deterministic, network[-1]),
        case("autocast", autocast, small),
        case("torch.compile, network", compiled_network, frames, compiler),
        case("torch.compile, training", compiled_training, small, compiler),
    ]  # fmt: skip


def cuda_cases() -> list[Case]:
    def case(name: str, check: Callable[..., None], *args: object) -> Case:
        def run() -> Row:
            check(*args)
            return {}

        return Case(name, run)

    return [
        *cases("cuda"),
        *(case(f"poisoned memory, {tuple(s)}", poisoned, s) for s in (*NETWORK, ODD[2])),
        case("CUDA graph", graph),
    ]


# Arguments. Values lean to one side so that a dropped term shows in a sum over many.


def draw(device: str, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """x and the four weights."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape.batch, shape.cin, shape.frames, shape.bins, generator=generator) + 1
    weights = workloads.block(shape.cin, shape.cout)[:4]
    return x.to(device, dtype), [w.to(device, dtype) for w in weights]


def draw_blocks(device: str, dtype: torch.dtype) -> list[BlockParameters]:
    """Blocks of the network's shapes, half the taps so that maps neither vanish nor explode."""
    blocks = [workloads.block(layer.cin, layer.cout) for layer in LAYERS.values()]
    return [
        BlockParameters(b.pointwise.to(device, dtype), (b.time_taps / 2).to(device, dtype),
                        (b.freq_taps / 2).to(device, dtype), b.bias.to(device, dtype))
        for b in blocks
    ]  # fmt: skip


# The checks.


def operator(device: str, shape: Shape, precision: str) -> float:
    return _check(shape, None, precision, *draw(device, shape, DTYPES[precision]))


def block(device: str, shape: Shape, precision: str) -> float:
    return _check(shape, shape.pool, precision, *draw(device, shape, DTYPES[precision]))


def channels_last(device: str, shape: Shape) -> float:
    x, weights = draw(device, shape, torch.float32)
    x = x.to(memory_format=torch.channels_last)
    y = _run(x, weights, shape, shape.pool)[0]
    if not y.is_contiguous(memory_format=torch.channels_last):
        raise AssertionError(f"the output of a channels_last map has strides {y.stride()}")
    return max(_check(shape, pool, "IEEE", x, weights) for pool in (None, shape.pool))


def _check(
    shape: Shape, pool: int | None, precision: str, x: Tensor, weights: Sequence[Tensor]
) -> float:
    """Output and gradients of the block, or of the operator where pool is None.

    Sums over all positions, in whose worst case a missing row could hide, are held to the random
    walk.
    """
    with settings(precision):
        y, grad, gradients = _run(x, weights, shape, pool)
    forward, backward = FORWARD.get(precision, 0.0), BACKWARD.get(precision, 0.0)
    p, a, b, bias = weights
    block = p, a, b, bias, shape.dilation, pool
    shares = [share_of_bound("output", y, *forward_bound(x, [block], products=forward), x.dtype)]
    bounds = gradient_bounds(grad, x, block, growth=random_walk, products=forward,
                             backward_products=(backward,) * 5)  # fmt: skip
    shares += [
        share_of_bound(f"gradient of {name}", got, *bound, x.dtype)
        for name, got, bound in zip(GRADIENTS, gradients, bounds, strict=True)
    ]
    return max(shares)


def _run(
    x: Tensor, weights: Sequence[Tensor], shape: Shape, pool: int | None
) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """The output, a gradient of it, and the gradients of x and the weights that follow."""
    leaves = [t.detach().requires_grad_() for t in (x, *weights)]
    if pool is None:
        y = fastsep.sep_conv2d(*leaves, dilation=shape.dilation)
    else:
        y = fastsep.sep_conv2d_block(*leaves, dilation=shape.dilation, pool=pool)
    generator = torch.Generator().manual_seed(4)
    grad = (torch.randn(y.shape, generator=generator) + 1).to(y.device, y.dtype)
    return y.detach(), grad, torch.autograd.grad(y, leaves, grad)


def stack(device: str, frames: int, precision: str) -> float:
    """All blocks with affine and stripes. Bounds multiply over blocks beyond use, so the error is
    held to 2 eps of the largest output a block, eps being that of what is rounded."""
    compute = "bf16" if precision == "compute=bf16" else None
    precision = "IEEE" if compute else precision
    dtype = DTYPES[precision]
    blocks = draw_blocks(device, dtype)
    x, _ = draw(device, Shape(1, 1, frames, 256, batch=3), dtype)
    scale = torch.linspace(0.5, 1.5, 256).to(device, dtype)
    shift = torch.linspace(-1, 1, 256).to(device, dtype)
    stripes = torch.tensor([[[0, 3, 9], [1, 100, 131]], [[0, 0, frames], [1, 0, 0]],
                            [[1, 0, 32], [1, 255, 256]]])  # fmt: skip
    stripes = stripes.to(device, torch.int32)
    with settings(precision), torch.no_grad():
        y = fastsep.sep_conv2d_stack(
            x, blocks, affine=(scale, shift), stripes=stripes, compute=compute
        )
    wide = [BlockParameters(*(w.double() for w in b[:4])) for b in blocks]  # type: ignore[arg-type]
    exact = reference.sep_conv2d_stack(x.double(), wide, scale.double(), shift.double(), stripes)
    eps = {"IEEE": 2.0**-23, "TF32": 2.0**-10, "bf16": 2.0**-8}
    allowed = 2 * len(blocks) * (eps["bf16"] if compute else eps[precision])
    return share_of_bound("output", y, exact, allowed * exact.abs().max())


def nan(device: str, shape: Shape) -> float:
    """A NaN in the input reaches the same outputs as in the reference."""
    x, weights = draw(device, shape, torch.float32)
    x[0, -1, shape.frames // 2, shape.bins // 2] = torch.nan
    p, a, b, bias = weights
    d, pool = shape.dilation, shape.pool
    exact = reference.sep_conv2d_block(x, p, a, b, bias, d, pool).isnan()
    got = fastsep.sep_conv2d_block(x, p, a, b, bias, dilation=d, pool=pool).isnan()
    if not torch.equal(got, exact):
        raise AssertionError("NaN reaches other outputs than it should")
    assert exact.any() and not exact.all()
    return 0.0


def deterministic(device: str, shape: Shape) -> float:
    """Twice the same bits, forward and backward."""
    return _twice(draw(device, shape, torch.float32), shape, lambda: None)


def _twice(
    arguments: tuple[Tensor, Sequence[Tensor]], shape: Shape, between: Callable[[], None]
) -> float:
    for pool in (None, shape.pool):
        y, _, gradients = _run(*arguments, shape, pool)
        between()
        again, _, gradients_again = _run(*arguments, shape, pool)
        _assert_equal((again, *gradients_again), (y, *gradients))
    return 0.0


def _assert_equal(results: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Output and gradients, bit for bit; NaN equals nothing."""
    names = ("output", *(f"gradient of {name}" for name in GRADIENTS))
    for name, a, b in zip(names, results, expected, strict=True):
        if not torch.equal(a, b):
            raise AssertionError(f"{name}: other bits than those of a plain run")


def autocast(device: str, shape: Shape) -> float:
    """Under autocast float32 arguments give what their bfloat16 selves give."""
    x, weights = draw(device, shape, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        y = fastsep.sep_conv2d(x, *weights, dilation=shape.dilation)
    x, p, a, b, bias = (t.bfloat16() for t in (x, *weights))
    bound = forward_bound(x, [(p, a, b, bias, shape.dilation, None)])
    return share_of_bound("output", y, *bound, torch.bfloat16)


def compiled_network(device: str, frames: int, compiler: str) -> float:
    """torch.compile(fullgraph=True) of the network in eval mode: the eager run's logits."""
    from asc.model import Cnn6Sep

    torch.manual_seed(0)
    model = Cnn6Sep().to(device).eval()
    x = torch.randn(2, 1, frames, 256, device=device)
    with torch.no_grad():
        expected = model(x).double()
        got = torch.compile(model, fullgraph=True, backend=compiler)(x)
    return share_of_bound("logits", got, expected, 1e-4 * expected.abs().max())


def compiled_training(device: str, shape: Shape, compiler: str) -> float:
    """torch.compile(fullgraph=True) of a block in training: the eager run's gradients."""
    torch.manual_seed(0)
    block = SepConvBlock(shape.cin, shape.cout).to(device)
    x, _ = draw(device, shape, torch.float32)

    def step(function: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).square().mean(), (leaf, *block.parameters()))

    expected = step(block)
    got = step(torch.compile(block, fullgraph=True, backend=compiler))
    # Batch norm's backward cancels: its output may be off by what was rounded before.
    return max(
        share_of_bound("gradient", a, b.double(), 1e-3 * b.abs().max() + 1e-9)
        for a, b in zip(got, expected, strict=True)
    )


# What only CUDA has.


def poison() -> None:
    """Leaves NaN in the free blocks of the caching allocator, small ones and large ones."""
    torch.cuda.empty_cache()
    blocks = [torch.full((size // 4,), torch.nan, device="cuda")
              for size, count in ((2**30, 2), (2**23, 8), (2**19, 32), (2**12, 256))
              for _ in range(count)]  # fmt: skip
    del blocks


def poisoned(shape: Shape) -> None:
    """Every output and every scratch value is written before it is read."""
    _twice(draw("cuda", shape, torch.float32), shape, poison)


def graph() -> None:
    """A captured forward and backward, replayed on new data, gives the bits of a plain run."""
    shape = NETWORK[1]
    x, weights = draw("cuda", shape, torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    static = x.clone()
    grad = torch.ones(shape.batch, shape.cout, shape.frames // 2, shape.bins // 2, device="cuda")

    def run(x: Tensor) -> Sequence[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, *weights)]
        y = fastsep.sep_conv2d_block(*leaves)
        return (y.detach(), *torch.autograd.grad(y, leaves, grad))

    with torch.cuda.stream(stream):
        for _ in range(3):
            run(static)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = run(static)
    static.copy_(-2 * x)
    captured.replay()
    _assert_equal(results, run(-2 * x))
