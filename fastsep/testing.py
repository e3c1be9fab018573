"""How far rounding may go: what the tests and the GPU suite hold results to.

A backend's result is compared with the same computation in float64, each element within a bound
that follows from the arithmetic:

    expected, bound = forward_bound(x, [(pointwise, time_taps, freq_taps, bias, dilation, pool)])
    share = share_of_bound("output", y, expected, bound, x.dtype)    # raises AssertionError above 1

    bounds = gradient_bounds(grad, x, block)                         # of x and the four weights
    for name, got, (expected, bound) in zip(GRADIENTS, gradients, bounds):
        share_of_bound(f"gradient of {name}", got, expected, bound, x.dtype)

All arguments are what the backend got, in its dtype and on its device. Two ways of counting the
roundings of a sum are at hand, `worst_case` and `random_walk`; `gradient_bounds` takes either. What
else a backend rounds is said by `products` and `truncates`: `products=TF32` for the tensor cores'
TF32, `products=rounding_of(torch.bfloat16)` where factors are rounded to bfloat16 first.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastsep import reference

# (pointwise, time_taps, freq_taps, bias, dilation, pool); pool None: neither ReLU nor pooling.
Block = tuple[Tensor, Tensor, Tensor, Tensor | None, int, int | None]

GRADIENTS = ("x", "pointwise", "time_taps", "freq_taps", "bias")

TF32 = 2.01 * 2.0**-10  # of a product whose factors keep 10 bits, truncated


def rounding_of(dtype: torch.dtype) -> float:
    """The relative error of a product whose two factors are rounded to `dtype`."""
    return 1.01 * torch.finfo(dtype).eps  # (1 + eps / 2)^2 - 1


def worst_case(terms: int, eps: float) -> float:
    """How far a sum of so many terms may be off at the most, as a share of sum |terms|: n eps.

    Computed in any order, with or without fused multiply-add, it is off by at most
    gamma_n sum |terms|, gamma_n = n u / (1 - n u), u = eps / 2. Twice that leaves room for the
    rounding of the float64 expectation itself.

    Right for whatever inputs a test may come up with, and for sums of up to some thousand terms.
    Over all positions of a large map it is so wide that a missing row fits in.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    return terms * eps


def random_walk(terms: int, eps: float) -> float:
    """How far a long sum goes in practice, as a share of sum |terms|: 4 sqrt(n) eps.

    Roundings of either sign cancel as the steps of a random walk do. Narrow enough to see a missing
    row in a sum over all positions of a large map. Right for random inputs and many terms; inputs
    made for it, or sums of a few terms, may exceed it without any mistake.
    """
    return 4 * terms**0.5 * eps


def forward_bound(
    x: Tensor,
    blocks: Sequence[Block],
    affine: tuple[Tensor, Tensor] | None = None,
    stripes: Tensor | None = None,
    *,
    products: float = 0.0,
    truncates: bool = False,
) -> tuple[Tensor, Tensor]:
    """What blocks make of x, and how far off a backend may be: the worst case.

    float16 and bfloat16 accumulate in float32 and round once more when stored; between the blocks
    of a stack a map may be stored or kept in float32. Bounds multiply from block to block: beyond
    three or four they say little.

    Args:
        x: (N, C, T, F) in the dtype that results are stored in.
        blocks: at least one; of the bare operator, bias and pool may be None.
        affine, stripes: as for `sep_conv2d_stack`.
        products: relative error that a backend adds to the products of the 1x1 convolutions by
            rounding their factors.
        truncates: whether it truncates when it stores, as Triton's interpreter does.

    Returns:
        (expected, bound), both float64, of the output's shape.
    """
    dtype, eps = x.dtype, _eps(x.dtype)
    scale, shift = (None, None) if affine is None else (t.double() for t in affine)
    y = reference.load(x.double(), scale, shift, stripes)
    error = torch.zeros_like(y)
    if scale is not None and shift is not None:  # a product and a sum, perhaps each of them stored
        size = 2 * x.double().abs() * scale.abs() + shift.abs()
        error = reference.load(torch.finfo(dtype).eps * size, None, None, stripes)
    for block in blocks:
        block = _double(block)
        y, error = _convolve(y, error, block, eps, products)
        if (pool := block[5]) is not None:
            y, error = _pooled(torch.relu(y), pool), _pooled(error, pool)
            error = error + (pool**2 + 1) * eps * (y + error)
        error = _stored(y, error, dtype, truncates)
    return y, error


def gradient_bounds(
    grad: Tensor,
    x: Tensor,
    block: Block,
    *,
    growth: Callable[[int, float], float] = worst_case,
    products: float = 0.0,
    backward_products: Sequence[float] = (0, 0, 0, 0, 0),
    truncates: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Gradients of a block, and how far off a backend may be.

    Where a pre-activation is within rounding of 0, either side of the ReLU's kink is right: what
    flows through there is added to the bound.

    Args:
        grad: of the output, in x's dtype.
        x: (N, Cin, T, F).
        block: as for `forward_bound`.
        growth: `worst_case` or `random_walk`, of the sums in the gradients.
        products: as for `forward_bound`; it decides where the kink is.
        backward_products: the same for the products in each of the five gradients.
        truncates: as for `forward_bound`.

    Returns:
        (expected, bound) of x, pointwise, time_taps, freq_taps and bias (whether or not there is
        one), float64.
    """
    dtype, eps = x.dtype, _eps(x.dtype)
    n, _, frames, bins = x.shape
    pointwise, time, freq, bias, dilation, pool = _double(block)
    x, grad = x.double(), grad.double()
    bare = pointwise, time, freq, bias, dilation, None
    y, error = _convolve(x, torch.zeros_like(x), bare, eps, products)
    slope, kink = torch.ones_like(y), torch.zeros_like(y)
    if pool is not None:
        slope, kink = (y > 0).double(), (y.abs() <= error).double()
        grad = _unpooled(grad, pool, frames, bins)
    inputs = [x, pointwise, time, freq, pointwise.new_zeros(len(pointwise))]
    exact = _vjp(inputs, dilation, grad * slope)
    sizes = [t.abs() for t in inputs]
    size = _vjp(sizes, dilation, grad.abs() * torch.maximum(slope, kink))
    flips = _vjp(sizes, dilation, grad.abs() * kink)
    positions = n * frames * bins
    cout, cin = pointwise.shape
    terms = (cout, positions, positions + cin, positions + cin, positions)
    return [
        # 12: taps, pooling's divisor, slack
        (g, _stored(g, f + (growth(m + 12, eps) + r) * s, dtype, truncates))
        for g, s, f, m, r in zip(exact, size, flips, terms, backward_products, strict=True)
    ]


def share_of_bound(
    what: str,
    actual: Tensor,
    expected: Tensor,
    bound: Tensor | float,
    dtype: torch.dtype | None = None,
) -> float:
    """The largest error as a share of its bound: at most 1.

    Raises:
        AssertionError: an error above its bound, a NaN, another shape, or a dtype other than
            `dtype` where that is given.
    """
    if dtype is not None and actual.dtype != dtype:
        raise AssertionError(f"{what}: {actual.dtype}, expected {dtype}")
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
    if actual.numel() == 0:
        return 0.0
    share = ((actual.detach().double() - expected).abs() / bound).nan_to_num(torch.inf, torch.inf)
    largest = share.max().item()
    if largest > 1:
        wrong = share > 1
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are off by more than "
            f"rounding, the worst {largest:.3g} times; first at {where}: "
            f"{actual[where].item()}, expected {expected[where].item()}"
        )
    return largest


def _eps(dtype: torch.dtype) -> float:
    """Of the type that `dtype` accumulates in."""
    return torch.finfo(reference.accumulator(dtype)).eps


def _stored(y: Tensor, error: Tensor, dtype: torch.dtype, truncates: bool) -> Tensor:
    """The error after y, known to `error`, is stored in `dtype`."""
    smallest = 2.0**-24 if dtype == torch.float16 else 2.0**-126  # subnormals may be flushed
    rounding = torch.finfo(dtype).eps / (1 if truncates else 2)
    return error + rounding * (y.abs() + error) + smallest


def _convolve(
    y: Tensor, error: Tensor, block: Block, eps: float, products: float
) -> tuple[Tensor, Tensor]:
    """The operator on a float64 map known to `error`: (y, error).

    sum |terms| is the same computation on absolute values.
    """
    pointwise, time, freq, bias, dilation, _ = block
    terms = pointwise.shape[1] + 6 + 1 + 3  # products, taps, bias; merged centre taps and slack
    sizes = pointwise.abs(), time.abs(), freq.abs()
    offset = None if bias is None else bias.abs()
    spread = reference.sep_conv2d(error, *sizes, None, dilation)
    size = reference.sep_conv2d(y.abs() + error, *sizes, offset, dilation)
    y = reference.sep_conv2d(y, pointwise, time, freq, bias, dilation)
    return y, spread + (worst_case(terms, eps) + products) * size


def _vjp(inputs: list[Tensor], dilation: int, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the bare operator with bias by PyTorch's autograd."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    x, pointwise, time, freq, bias = leaves
    y = reference.sep_conv2d(x, pointwise, time, freq, bias, dilation)
    return torch.autograd.grad(y, leaves, grad)


def _pooled(y: Tensor, pool: int) -> Tensor:
    """Means over the pool x pool windows, without those that are not full."""
    n, c, frames, bins = y.shape
    rows, columns = frames // pool, bins // pool
    y = y[:, :, : rows * pool, : columns * pool]
    return y.reshape(n, c, rows, pool, columns, pool).mean((3, 5))


def _unpooled(grad: Tensor, pool: int, frames: int, bins: int) -> Tensor:
    """What each position of a (frames, bins) map gets of its window's gradient."""
    spread = grad.repeat_interleave(pool, 2).repeat_interleave(pool, 3) / pool**2
    missing = (0, bins - spread.shape[3], 0, frames - spread.shape[2])
    return torch.nn.functional.pad(spread, missing)


def _double(block: Block) -> Block:
    pointwise, time, freq, bias, dilation, pool = block
    bias = None if bias is None else bias.double()
    return pointwise.double(), time.double(), freq.double(), bias, dilation, pool
