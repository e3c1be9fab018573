"""The bounds themselves: what is right fits in, what is wrong does not."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsep import reference
from fastsep.testing import (
    TF32,
    Block,
    forward_bound,
    gradient_bounds,
    random_walk,
    rounding_of,
    share_of_bound,
    worst_case,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Draw = Callable[..., tuple[Any, ...]]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(x: Tensor, block: Block) -> Tensor:
    p, a, b, bias, dilation, pool = block
    if pool is None:
        return reference.sep_conv2d(x, p, a, b, bias, dilation)
    assert bias is not None
    return reference.sep_conv2d_block(x, p, a, b, bias, dilation, pool)


def gradients(grad: Tensor, x: Tensor, block: Block) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (x, *block[:4]) if t is not None]
    inner: Any = (*leaves[1:], *block[4:])
    return torch.autograd.grad(run(leaves[0], inner), leaves, grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [None, 1, 2])
def test_plain_pytorch_is_within_the_bounds(
    weights: Draw, dtype: torch.dtype, pool: int | None
) -> None:
    x = random(2, 5, 11, 12, dtype=dtype)
    block: Block = (*weights(5, 7, dtype), 2, pool)  # type: ignore[assignment]
    y = run(x, block)
    share = share_of_bound("output", y, *forward_bound(x, [block]), dtype)
    assert share <= 1 and (share > 0) == (dtype != torch.float64)
    grad = random(*y.shape, dtype=dtype, seed=1)
    for growth in (worst_case, random_walk):
        bounds = gradient_bounds(grad, x, block, growth=growth)
        for got, bound in zip(gradients(grad, x, block), bounds, strict=True):
            assert share_of_bound("gradient", got, *bound, dtype) <= 1


def test_a_stack_under_affine_and_stripes_is_within_the_bound(weights: Draw) -> None:
    x = random(2, 1, 16, 18)
    blocks: Any = [(*weights(1, 6, x.dtype), 2, 2), (*weights(6, 4, x.dtype, 1), 1, 3)]
    affine = random(18, seed=2), random(18, seed=3)
    stripes = torch.tensor([[[0, 2, 5]], [[1, 0, 4]]])
    y = reference.sep_conv2d_stack(x, blocks, *affine, stripes)
    share_of_bound("output", y, *forward_bound(x, blocks, affine, stripes))
    for wrong in ((blocks, affine, None), (blocks, None, stripes), (blocks[:1], affine, stripes)):
        with pytest.raises(AssertionError, match=r"more than rounding|shape"):
            share_of_bound("output", y, *forward_bound(x, *wrong))


@pytest.mark.parametrize("which", range(4), ids=["pointwise", "time_taps", "freq_taps", "bias"])
def test_one_weight_slightly_off_is_seen(weights: Draw, which: int) -> None:
    x, drawn = random(2, 5, 11, 12), weights(5, 7, torch.float32)
    expected, bound = forward_bound(x, [(*drawn, 2, 2)])
    drawn[which].view(-1)[3] *= 1.0001
    with pytest.raises(AssertionError, match=r"output: .* off by more than rounding"):
        share_of_bound("output", run(x, (*drawn, 2, 2)), expected, bound)


def test_a_missing_row_hides_in_the_worst_case_of_a_long_sum_only(weights: Draw) -> None:
    x = random(2, 3, 431, 64) + 1
    block: Block = (*weights(3, 2, torch.float32), 2, None)  # type: ignore[assignment]
    grad = random(2, 2, 431, 64, seed=1) + 1
    right = gradients(grad, x, block)
    without = grad.clone()
    without[:, :, 200] = 0
    wrong = gradients(without, x, block)
    for growth, sees_it in ((worst_case, False), (random_walk, True)):
        bound = gradient_bounds(grad, x, block, growth=growth)[1]
        share_of_bound("pointwise", right[1], *bound)
        if sees_it:
            with pytest.raises(AssertionError, match="more than rounding"):
                share_of_bound("pointwise", wrong[1], *bound)
        else:
            share_of_bound("pointwise", wrong[1], *bound)


def test_either_side_of_the_kink_is_right() -> None:
    """A pre-activation of 0: its gradient may flow or not."""
    x, one = torch.ones(1, 1, 1, 1), torch.ones(1, 1)
    taps = torch.zeros(1, 3)
    block: Block = (one, taps, taps, torch.zeros(1), 1, 1)
    for flows in (0.0, 1.0):
        bounds = gradient_bounds(torch.ones(1, 1, 1, 1), x, block)
        share_of_bound("bias", torch.tensor([flows]), *bounds[4])
    with pytest.raises(AssertionError):
        share_of_bound("bias", torch.tensor([1.1]), *bounds[4])


def test_truncation_on_storing_is_allowed_where_it_is_said(weights: Draw) -> None:
    x = random(2, 5, 11, 12).bfloat16()
    block: Block = (*weights(5, 7, torch.bfloat16), 2, 2)  # type: ignore[assignment]
    p, a, b, bias = (w.float() for w in block[:4] if w is not None)
    wide = reference.sep_conv2d_block(x.float(), p, a, b, bias)
    truncated = (wide.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()
    share_of_bound("output", truncated, *forward_bound(x, [block], truncates=True))
    with pytest.raises(AssertionError, match="more than rounding"):
        share_of_bound("output", truncated, *forward_bound(x, [block]))


@pytest.mark.parametrize("products", [rounding_of(torch.bfloat16), TF32])
def test_rounded_factors_are_allowed_where_they_are_said(weights: Draw, products: float) -> None:
    x, drawn = random(2, 16, 11, 12), weights(16, 7, torch.float32)

    def rounded(t: Tensor) -> Tensor:
        if products == TF32:
            return (t.view(torch.int32) & ~0x1FFF).view(torch.float32)
        return t.bfloat16().float()

    y = run(rounded(x), (rounded(drawn[0]), *drawn[1:], 2, 2))
    share_of_bound("output", y, *forward_bound(x, [(*drawn, 2, 2)], products=products))
    with pytest.raises(AssertionError, match="more than rounding"):
        share_of_bound("output", y, *forward_bound(x, [(*drawn, 2, 2)]))


def test_products_of_the_backward_pass_count_one_gradient_at_a_time(weights: Draw) -> None:
    x = random(1, 3, 9, 8)
    block: Block = (*weights(3, 4, torch.float32), 1, 2)  # type: ignore[assignment]
    grad = random(1, 4, 4, 4, seed=1)
    plain = gradient_bounds(grad, x, block)
    wider = gradient_bounds(grad, x, block, backward_products=(0, 1e-3, 0, 0, 0))
    for i, ((_, a), (_, b)) in enumerate(zip(plain, wider, strict=True)):
        assert bool((b > a).all()) == (i == 1) and (i == 1 or torch.equal(a, b))


def test_two_ways_of_counting() -> None:
    assert worst_case(100, 1e-7) == pytest.approx(1e-5)
    assert random_walk(100, 1e-7) == pytest.approx(4e-6)
    assert random_walk(4, 1e-7) > worst_case(4, 1e-7)


def test_share_of_bound() -> None:
    expected, bound = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 0.1]).double()
    assert share_of_bound("y", torch.tensor([1.25, 2.0]), expected, bound) == pytest.approx(0.5)
    assert share_of_bound("y", torch.tensor([1.0, 2.5]), expected, 1.0) == pytest.approx(0.5)
    assert share_of_bound("y", torch.empty(0, 2), torch.empty(0, 2), 1.0) == 0
    said = r"y: 1 of 2 elements .*, the worst 5 times; first at \(1,\): 2\.5, expected 2\.0"
    with pytest.raises(AssertionError, match=said):
        share_of_bound("y", torch.tensor([1.25, 2.5]), expected, bound)


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (torch.tensor([torch.nan, 2.0]), "first at (0,): nan"),
        (torch.tensor([1.0, torch.inf]), "the worst inf times"),
        (torch.tensor([[1.0, 2.0]]), "shape (1, 2), expected (2,)"),
        (torch.tensor([1.0, 2.0]).double(), "torch.float64, expected torch.float32"),
        (torch.tensor([1.0]).expand(0), "shape (0,), expected (2,)"),
    ],
)
def test_share_of_bound_refuses(actual: Tensor, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        share_of_bound("y", actual, torch.tensor([1.0, 2.0]).double(), 1.0, torch.float32)
