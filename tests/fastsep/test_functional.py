"""Forward and backward of the operator, the block and the stack, against float64."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastsep
from fastsep import reference
from fastsep.kernels import interpreted

Draw = Callable[..., tuple[Any, Any, Any, Any]]  # the fixture `weights`

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = (
    "contiguous",
    "channels_last",
    "every second channel",
    "transposed",
    "cropped",
    "unaligned",
    "batch expanded",
    "channels expanded",
)

if interpreted():  # slowly; what needs several tiles is in test_triton.py
    sizes = st.integers(0, 9) | st.sampled_from([1, 2, 3, 17])
    channels_in = st.integers(0, 20) | st.sampled_from([1])
    channels_out = st.integers(0, 20) | st.sampled_from([1, 33])
else:
    sizes = st.integers(0, 20) | st.sampled_from([1, 2, 3, 31, 33, 67])
    channels_in = st.integers(0, 20) | st.sampled_from([1, 16, 64])
    channels_out = st.integers(0, 40) | st.sampled_from([1, 15, 16, 17, 65, 100])


@dataclass(frozen=True)
class Problem:
    shape: tuple[int, int, int, int]
    cout: int
    dilation: int
    pool: int
    dtype: torch.dtype
    layout: str
    strided_weights: bool
    seed: int


problems = st.builds(
    Problem,
    shape=st.tuples(st.integers(0, 3), channels_in, sizes, sizes),
    cout=channels_out,
    dilation=st.integers(1, 4),
    pool=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    strided_weights=st.booleans(),
    seed=st.integers(0, 2**16),
)

stripe = st.tuples(st.sampled_from([0, 1, 0, 1, 2]), st.integers(-4, 24), st.integers(-4, 40))


def examples(count: int) -> settings:
    return settings(max_examples=12 if interpreted() else count)


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x in other strides, with NaN in the gaps; the expanded ones repeat its first slice."""
    n, c, t, f = x.shape
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "every second channel":
        gaps = x.new_full((n, 2 * c, t, f), torch.nan)
        gaps[:, ::2] = x
        return gaps[:, ::2]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "cropped":
        gaps = x.new_full((n, c, t + 2, f + 3), torch.nan)
        gaps[:, :, 1:-1, 1:-2] = x
        return gaps[:, :, 1:-1, 1:-2]
    if layout == "unaligned":
        return torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view(x.shape)
    if layout == "batch expanded":
        return x[:1].expand_as(x)
    if layout == "channels expanded":
        return x[:, :1].expand_as(x)
    return x.contiguous()


def strided(w: Tensor) -> Tensor:
    """w with gaps of NaN between its elements and, if it has two dimensions, in column order."""
    gaps = w.new_full((*w.shape[::-1], 2), torch.nan)
    gaps[..., 0] = w.movedim(0, -1)
    return gaps[..., 0].movedim(-1, 0)


def drawn(problem: Problem, weights: Draw) -> tuple[Tensor, tuple[Any, Any, Any, Any]]:
    x = laid_out(random(problem.shape, problem.dtype, problem.seed), problem.layout)
    w = weights(problem.shape[1], problem.cout, problem.dtype, problem.seed + 1)
    if problem.strided_weights:
        p, a, b, c = w
        w = strided(p), strided(a), strided(b), strided(c)
    return x, w


def assert_layout(y: Tensor, x: Tensor) -> None:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    ok = y.numel() == 0 or y.is_contiguous(memory_format=wanted)
    assert ok, f"x of strides {x.stride()} gave y of strides {y.stride()}"


@pytest.mark.interpreted
@examples(400)
@given(problem=problems, with_bias=st.booleans())
def test_sep_conv2d(
    backend: str,
    weights: Draw,
    check_forward: Callable[..., None],
    problem: Problem,
    with_bias: bool,
) -> None:
    x, (pointwise, time, freq, bias) = drawn(problem, weights)
    b = bias if with_bias else None
    y = fastsep.sep_conv2d(x, pointwise, time, freq, b, dilation=problem.dilation)
    check_forward(y, x, [(pointwise, time, freq, b, problem.dilation, None)])
    assert_layout(y, x)


@pytest.mark.interpreted
@examples(400)
@given(problem=problems)
def test_sep_conv2d_block(
    backend: str,
    weights: Draw,
    check_forward: Callable[..., None],
    problem: Problem,
) -> None:
    x, w = drawn(problem, weights)
    y = fastsep.sep_conv2d_block(x, *w, dilation=problem.dilation, pool=problem.pool)
    check_forward(y, x, [(*w, problem.dilation, problem.pool)])
    assert_layout(y, x)


@pytest.mark.interpreted
@examples(300)
@given(
    problem=problems,
    more=st.lists(
        st.tuples(channels_out, st.integers(1, 3), st.sampled_from([1, 2, 2, 3])), max_size=3
    ),
    with_affine=st.booleans(),
    stripes=st.none()
    | st.tuples(st.integers(0, 4), st.sampled_from([torch.int32, torch.int64, torch.int8])),
    data=st.data(),
)
def test_sep_conv2d_stack(
    backend: str,
    weights: Draw,
    check_forward: Callable[..., None],
    problem: Problem,
    more: list[tuple[int, int, int]],
    with_affine: bool,
    stripes: tuple[int, torch.dtype] | None,
    data: st.DataObject,
) -> None:
    x, w = drawn(problem, weights)
    n, _, _, bins = problem.shape
    blocks = [fastsep.BlockParameters(*w, problem.dilation, problem.pool)]
    for i, (cout, dilation, pool) in enumerate(more):
        w = weights(blocks[-1].pointwise.shape[0], cout, problem.dtype, problem.seed + 2 + i)
        blocks.append(fastsep.BlockParameters(*w, dilation, pool))
    affine = None
    if with_affine:
        affine = (random((bins,), problem.dtype, 7), random((bins,), problem.dtype, 8))
    mask = None
    if stripes is not None:
        count, dtype = stripes
        of_all = st.lists(st.lists(stripe, min_size=count, max_size=count), min_size=n, max_size=n)
        mask = torch.tensor(data.draw(of_all), dtype=dtype).reshape(n, count, 3)
    y = fastsep.sep_conv2d_stack(x, blocks, affine=affine, stripes=mask)
    check_forward(y, x, blocks, affine, mask)
    assert_layout(y, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stack_of_the_whole_network(
    backend: str,
    weights: Draw,
    check_forward: Callable[..., None],
    dtype: torch.dtype,
) -> None:
    """The channels and the 256 bins of DCASE's CNN6, on fewer frames."""
    channels = (1, 64, 128, 128, 128)
    blocks = [
        fastsep.BlockParameters(*weights(cin, cout, dtype, cout))
        for cin, cout in pairwise(channels)
    ]
    x = random((2, 1, 51, 256), dtype, 0)
    affine = (random((256,), dtype, 1), random((256,), dtype, 2))
    stripes = torch.tensor(
        [
            [[0, 3, 20], [0, 10, 25], [1, 250, 256], [1, 0, 9]],
            [[0, 0, 51], [0, 5, 5], [1, 7, 3], [1, 0, 256]],
        ],
        dtype=torch.int32,
    )
    y = fastsep.sep_conv2d_stack(x, blocks, affine=affine, stripes=stripes)
    check_forward(y, x, blocks, affine, stripes)


@pytest.mark.interpreted
def test_masked_positions_may_hold_anything(backend: str, weights: Draw) -> None:
    """A mask writes 0: NaN and infinity below it are gone, also those the affine made."""
    block = fastsep.BlockParameters(*weights(3, 5, torch.float32))
    x, scale, shift = random((1, 3, 12, 10), torch.float32, 0), torch.ones(10), torch.zeros(10)
    stripes = torch.tensor([[[0, 2, 5], [1, 7, 9]]], dtype=torch.int32)
    clean = fastsep.sep_conv2d_stack(x, [block], affine=(scale, shift), stripes=stripes)
    x[:, :, 2:4], x[:, :, 4] = torch.nan, torch.inf
    scale[7], shift[8] = torch.inf, torch.nan
    dirty = fastsep.sep_conv2d_stack(x, [block], affine=(scale, shift), stripes=stripes)
    assert torch.equal(dirty, clean)


@pytest.mark.interpreted
@examples(300)
@given(
    problem=problems,
    operator=st.sampled_from(["conv", "conv with bias", "block"]),
    grad_layout=st.sampled_from([*LAYOUTS, "one value"]),
    needs=st.sets(st.integers(0, 4), min_size=1),
)
def test_gradients(
    backend: str,
    weights: Draw,
    check_gradients: Callable[..., None],
    problem: Problem,
    operator: str,
    grad_layout: str,
    needs: set[int],
) -> None:
    x, (pointwise, time, freq, bias) = drawn(problem, weights)
    b = None if operator == "conv" else bias
    inputs = [x, pointwise, time, freq, b]
    asked = [i for i in sorted(needs) if inputs[i] is not None] or [0]
    for i in asked:
        inputs[i].requires_grad_()
    if operator == "block":
        y = fastsep.sep_conv2d_block(*inputs, dilation=problem.dilation, pool=problem.pool)
    else:
        y = fastsep.sep_conv2d(*inputs, dilation=problem.dilation)
    grad = random(tuple(y.shape), problem.dtype, problem.seed + 9)
    if grad_layout == "one value":
        grad = grad.new_full((), 0.37).expand_as(y)
    else:
        grad = laid_out(grad, grad_layout)
    gradients = torch.autograd.grad(y, [inputs[i] for i in asked], grad)
    by_input: list[Tensor | None] = [None] * 5
    for i, g in zip(asked, gradients, strict=True):
        by_input[i] = g
    pool = problem.pool if operator == "block" else None
    check_gradients(by_input, grad, x, (pointwise, time, freq, b, problem.dilation, pool))


@pytest.mark.interpreted
def test_gradient_of_channels_last_input_is_channels_last(backend: str, weights: Draw) -> None:
    x = laid_out(random((2, 4, 6, 5), torch.float32, 0), "channels_last").requires_grad_()
    y = fastsep.sep_conv2d_block(x, *weights(4, 8, torch.float32))
    y.backward(laid_out(torch.ones_like(y), "channels_last"))
    assert x.grad is not None
    assert_layout(x.grad, x)


@pytest.mark.interpreted
def test_gradient_at_the_kink_is_zero(backend: str, weights: Draw) -> None:
    """As torch.relu has it: where y is exactly 0, nothing flows."""
    pointwise, time, freq, _ = weights(3, 17, torch.float32)
    inputs = [torch.zeros(2, 3, 7, 6), pointwise, time, freq, torch.zeros(17)]
    y = fastsep.sep_conv2d_block(*[t.requires_grad_() for t in inputs])
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.interpreted
def test_weights_used_twice_get_both_gradients(backend: str, weights: Draw) -> None:
    pointwise, taps, _, _ = weights(4, 4, torch.float64)
    taps.requires_grad_()
    x = random((1, 4, 6, 6), torch.float64, 0)
    y = fastsep.sep_conv2d(x, pointwise, taps, taps)
    expected = reference.sep_conv2d(x, pointwise, taps, taps)
    for got, wanted in zip(
        torch.autograd.grad(y.sum(), taps), torch.autograd.grad(expected.sum(), taps), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


def away_from_kinks(
    shape: tuple[int, int, int, int],
    blocks: list[tuple[int, int, int]],
    stripes: Tensor | None = None,
) -> list[Tensor]:
    """Float64 inputs of a stack no pre-activation of which is within 1e-3 of 0.

    blocks: (cout, dilation, pool). Order: x, the weights block by block, scale and shift.
    """
    for seed in range(10_000):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=rng, dtype=torch.float64)
        scale, shift = torch.rand(2, shape[3], generator=rng, dtype=torch.float64) + 0.5
        y, inputs, closest = reference.load(x, scale, shift, stripes), [x], 1.0
        for cout, dilation, pool in blocks:
            sizes = ((cout, y.shape[1]), (cout, 3), (cout, 3), (cout,))
            p, a, b, c = (torch.randn(s, generator=rng, dtype=torch.float64) for s in sizes)
            closest = min(closest, reference.sep_conv2d(y, p, a, b, c, dilation).abs().min().item())
            y = reference.sep_conv2d_block(y, p, a, b, c, dilation, pool)
            inputs += [p, a, b, c]
        if closest > 1e-3:
            return [t.clone().requires_grad_() for t in (*inputs, scale, shift)]
    raise AssertionError("no such data")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dilation", [1, 3])
def test_gradcheck_sep_conv2d(backend: str, weights: Draw, dilation: int, with_bias: bool) -> None:
    x = random((2, 3, 5, 4), torch.float64, 0)
    inputs = [x, *weights(3, 4, torch.float64)[: 4 if with_bias else 3]]

    def run(*args: Tensor) -> Tensor:
        return fastsep.sep_conv2d(*args, dilation=dilation)

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize(("dilation", "pool"), [(1, 1), (2, 2), (3, 2), (1, 3)])
@pytest.mark.parametrize("depth", [1, 2])
def test_gradcheck_blocks(backend: str, dilation: int, pool: int, depth: int) -> None:
    """One block as such, two as a stack with affine and stripes."""
    blocks = [(3, dilation, pool), (2, 1, 1)][:depth]
    stripes = torch.tensor([[[0, 1, 2]], [[1, 3, 9]]], dtype=torch.int32) if depth > 1 else None
    *inputs, scale, shift = away_from_kinks((2, 1, 5, 4), blocks, stripes)

    def run(x: Tensor, *w: Any) -> Tensor:
        if depth == 1:
            return fastsep.sep_conv2d_block(x, *w, dilation=dilation, pool=pool)
        first = fastsep.BlockParameters(*w[:4])._replace(dilation=dilation, pool=pool)
        second = fastsep.BlockParameters(*w[4:8])._replace(dilation=1, pool=1)
        return fastsep.sep_conv2d_stack(x, [first, second], affine=w[8:], stripes=stripes)

    if depth == 1:  # away_from_kinks has an affine: give the block what comes out of it
        inputs[0] = (scale * inputs[0] + shift).detach().requires_grad_()
        assert torch.autograd.gradcheck(run, inputs)
    else:
        assert torch.autograd.gradcheck(run, [*inputs, scale, shift])


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_a_stack_are_those_of_its_blocks(
    backend: str, weights: Draw, dtype: torch.dtype
) -> None:
    """With gradients a stack is a chain of blocks, and gives the very same numbers."""
    x = random((2, 2, 13, 11), dtype, 0).requires_grad_()
    first, second = weights(2, 6, dtype, 1), weights(6, 5, dtype, 2)
    leaves = [x, *(t.requires_grad_() for t in first + second)]
    blocks = [fastsep.BlockParameters(*first), fastsep.BlockParameters(*second, 1, 3)]
    stacked = fastsep.sep_conv2d_stack(x, blocks)
    y = fastsep.sep_conv2d_block(x, *first)
    y = fastsep.sep_conv2d_block(y, *second, dilation=1, pool=3)
    assert torch.equal(stacked, y)
    for got, wanted in zip(
        torch.autograd.grad(stacked.sum(), leaves),
        torch.autograd.grad(y.sum(), leaves),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("operator", [fastsep.sep_conv2d, fastsep.sep_conv2d_block])
@pytest.mark.parametrize("shape", [(1, 5, 67, 40), (5, 20, 9, 33)])
def test_backward_is_deterministic_in_any_number_of_threads(
    cpu_kernels: None,
    weights: Draw,
    threads: Callable[[int], None],
    operator: Callable[..., Tensor],
    shape: tuple[int, int, int, int],
) -> None:
    """Which PyTorch's own reductions, and so the reference, are not."""
    inputs = [random(shape, torch.float32, 0), *weights(shape[1], 48, torch.float32)]
    inputs = [t.requires_grad_() for t in inputs]
    results = []
    for count in (1, 1, 2, 2):
        threads(count)
        with fastsep.use_backend("cpu"):
            y = operator(*inputs)
        results.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# What lies beyond the map.

X = torch.ones(2, 3, 8, 6)
ONES: dict[str, Any] = {
    "pointwise": torch.ones(4, 3),
    "time_taps": torch.ones(4, 3),
    "freq_taps": torch.ones(4, 3),
    "bias": torch.ones(4),
}


def test_stop_beyond_any_size_reaches_the_end() -> None:
    """Also a stop that int32 does not hold."""
    block = fastsep.BlockParameters(**ONES)
    whole = torch.tensor([[[0, 3, 8]]] * 2)
    beyond = torch.tensor([[[0, 3, 2**40]]] * 2)
    expected = fastsep.sep_conv2d_stack(X, [block], stripes=whole)
    assert torch.equal(fastsep.sep_conv2d_stack(X, [block], stripes=beyond), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_stripes_of_unsigned_integers(dtype: torch.dtype) -> None:
    """The largest of which lie beyond any size, not before it."""
    block = fastsep.BlockParameters(**ONES)
    most = torch.iinfo(dtype).max
    stripes = torch.tensor([[[0, 3, most], [most, 0, 8], [0, most, most]]] * 2, dtype=dtype)
    expected = fastsep.sep_conv2d_stack(X, [block], stripes=torch.tensor([[[0, 3, 8]]] * 2))
    assert torch.equal(fastsep.sep_conv2d_stack(X, [block], stripes=stripes), expected)


@pytest.mark.parametrize("dilation", [7, 8, 100, 2**20])
def test_taps_beyond_the_map_read_zero(backend: str, dilation: int) -> None:
    """However far: at no cost in memory either."""
    y = fastsep.sep_conv2d(X, **ONES, dilation=dilation)
    bias, centre = ONES["bias"], 2 * X.sum(1, keepdim=True)
    expected = (centre + bias[:, None, None]).expand(2, 4, 8, 6).clone()
    if dilation == 7:
        expected[:, :, :1] += 3
        expected[:, :, 7:] += 3
    assert torch.equal(y, expected)


def test_pool_beyond_the_map_leaves_nothing(backend: str) -> None:
    assert fastsep.sep_conv2d_block(X, **ONES, pool=7).shape == (2, 4, 1, 0)
    assert fastsep.sep_conv2d_block(X, **ONES, pool=2**20).shape == (2, 4, 0, 0)
