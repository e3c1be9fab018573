"""The network's head: against float64, on every instruction set, and as PyTorch's citizen."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastsep import global_pool_mlp, reference
from fastsep.layouts import accumulator

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Layers = list[tuple[Tensor, Tensor]]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mlp(*widths: int, dtype: torch.dtype = torch.float32) -> Layers:
    return [
        (random(out, into, dtype=dtype, seed=i), random(out, dtype=dtype, seed=i + 99))
        for i, (into, out) in enumerate(pairwise(widths))
    ]


LAYOUTS = {
    "contiguous": lambda n, c, t, f: random(n, c, t, f),
    "channels_last": lambda n, c, t, f: random(n, t, f, c).permute(0, 3, 1, 2),
    "strided": lambda n, c, t, f: random(n, 2 * c, t, 3 * f)[:, ::2, :, ::3],
    "transposed": lambda n, c, t, f: random(n, c, f, t).transpose(2, 3),
    "expanded": lambda n, c, t, f: random(1, c, t, f).expand(n, c, t, f),
}


def check(x: Tensor, layers: Layers) -> None:
    """Each step by the rounding of its sums; the result is rounded to the dtype once."""
    eps = torch.finfo(accumulator(x.dtype)).eps
    rows = x.double().mean(dim=3)
    expected = rows.amax(dim=2) + rows.mean(dim=2)
    rows = x.double().abs().mean(dim=3)
    error = (x.shape[2] + x.shape[3] + 4) * eps * (rows.amax(dim=2) + rows.mean(dim=2))
    for i, (w, b) in enumerate(layers):
        w, b = w.double(), b.double()
        expected = torch.relu(expected) if i > 0 else expected
        size = (expected.abs() + error) @ w.abs().T + b.abs()
        error = error @ w.abs().T + (w.shape[1] + 2) * eps * size
        expected = expected @ w.T + b
    actual = global_pool_mlp(x, layers)
    assert actual.dtype == x.dtype
    assert actual.shape == expected.shape
    error += torch.finfo(x.dtype).eps * (expected.abs() + error) + torch.finfo(x.dtype).tiny
    assert ((actual.double() - expected).abs() <= error).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 37), st.integers(1, 9), st.integers(1, 40)),
    widths=st.lists(st.integers(0, 40), max_size=3),
)
def test_any_shape_and_strides(
    isa: str, layout: object, dtype: torch.dtype, shape: tuple[int, ...], widths: list[int]
) -> None:
    assert callable(layout)
    x = layout(*shape)
    x = x if dtype == x.dtype else torch.empty_like(x, dtype=dtype).copy_(x)
    check(x, mlp(shape[1], *widths, dtype=dtype))


def test_weights_of_any_strides(isa: str) -> None:
    (w, b), last = mlp(40, 33, 5)
    layers = [(w.T.contiguous().T, b.repeat_interleave(2)[::2]), last]
    check(random(2, 40, 3, 20), layers)


def test_nan_and_infinity(isa: str) -> None:
    x = random(3, 40, 5, 20)
    x[0, ::3, 2, 7] = torch.nan
    x[1, ::5, 1, 19] = torch.inf
    x[1, ::7, 0, 0] = -torch.inf
    x[2, 1] = -torch.inf
    for layers in ([], [(torch.eye(40), torch.zeros(40))], mlp(40, 6, 3)):
        weight, bias = [w for w, _ in layers], [b for _, b in layers]
        expected = reference.global_pool_mlp(x, weight, bias)
        torch.testing.assert_close(global_pool_mlp(x, layers), expected, equal_nan=True)


def test_threads_give_the_same_bits(isa: str, threads: Callable[[int], None]) -> None:
    x, layers = random(5, 40, 7, 33), mlp(40, 50, 10)
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(global_pool_mlp(x, layers))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_gradients(backend: str) -> None:
    x = random(2, 3, 4, 5, dtype=torch.float64).requires_grad_()
    layers = mlp(3, 4, 2, dtype=torch.float64)
    leaves = [t.requires_grad_() for layer in layers for t in layer]

    def run(x: Tensor, *leaves: Tensor) -> Tensor:
        return global_pool_mlp(x, list(zip(leaves[::2], leaves[1::2], strict=True)))

    for inputs in ((x,), (x, *leaves), (x.detach(), *leaves)):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(cpu_kernels: None, requires_grad: bool) -> None:
    layers = mlp(5, 4, 2)
    for name, layout in LAYOUTS.items():
        x = layout(2, 5, 3, 4).detach().requires_grad_(requires_grad)
        for n in (0, 2):
            weight, bias = [w for w, _ in layers[:n]], [b for _, b in layers[:n]]
            checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
            if name in ("contiguous", "channels_last"):  # the slow one
                checks.append("test_aot_dispatch_dynamic")
            op = torch.ops.fastsep.global_pool_mlp.default
            torch.library.opcheck(op, (x, weight, bias), test_utils=checks)


def test_compiles_in_one_graph(backend: str) -> None:
    compiled = torch.compile(global_pool_mlp, fullgraph=True, backend="aot_eager")
    x, layers = random(2, 5, 6, 7), mlp(5, 8, 3)
    torch.testing.assert_close(compiled(x, layers), global_pool_mlp(x, layers), rtol=0, atol=1e-5)
    torch.compiler.reset()


def test_autocast_casts_what_it_takes(backend: str) -> None:
    x, layers = random(2, 5, 6, 7), mlp(5, 8, 3)
    low = torch.bfloat16
    with torch.autocast("cpu", low):
        actual = global_pool_mlp(x, layers)
    expected = global_pool_mlp(x.to(low), [(w.to(low), b.to(low)) for w, b in layers])
    assert actual.dtype == low
    assert torch.equal(actual, expected)


def test_the_operator_itself_refuses_what_does_not_fit(cpu_kernels: None) -> None:
    op, x = torch.ops.fastsep.global_pool_mlp, random(2, 3, 4, 5)
    with pytest.raises(RuntimeError, match=r"layer 0 must have a weight \(out, 3\)"):
        op(x, [torch.ones(4, 2)], [torch.ones(4)])
    with pytest.raises(RuntimeError, match="as many weights as biases"):
        op(x, [torch.ones(4, 3)], [])
    with pytest.raises(RuntimeError, match="x's dtype"):
        op(x, [torch.ones(4, 3).half()], [torch.ones(4)])
