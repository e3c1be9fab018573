"""The tail's pooling: against float64, on every instruction set, and as PyTorch's citizen."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastsep
from fastsep import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


LAYOUTS = {
    "contiguous": lambda n, c, t, f: random(n, c, t, f),
    "channels_last": lambda n, c, t, f: random(n, t, f, c).permute(0, 3, 1, 2),
    "strided": lambda n, c, t, f: random(n, 2 * c, t, 3 * f)[:, ::2, :, ::3],
    "transposed": lambda n, c, t, f: random(n, c, f, t).transpose(2, 3),
    "expanded": lambda n, c, t, f: random(1, c, t, f).expand(n, c, t, f),
}


def check(x: Tensor) -> None:
    """Sums of T F terms, two of them; the result is rounded to the dtype once."""
    wide = x.double()
    expected = reference.global_pool(wide)
    actual = fastsep.global_pool(x)
    assert actual.dtype == x.dtype
    assert actual.shape == x.shape[:2]
    size = wide.abs().mean(dim=3)
    size = size.amax(dim=2) + size.mean(dim=2)
    computed = torch.finfo(reference.accumulator(x.dtype)).eps
    bound = (x.shape[2] + x.shape[3] + 4) * computed * size
    bound += torch.finfo(x.dtype).eps * (expected.abs() + bound) + torch.finfo(x.dtype).tiny
    assert ((actual.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 37), st.integers(1, 9), st.integers(1, 40))
)
def test_any_shape_and_strides(
    isa: str, layout: object, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    assert callable(layout)
    x = layout(*shape)
    check(x.to(dtype) if dtype == x.dtype else torch.empty_like(x, dtype=dtype).copy_(x))


def test_nan_and_infinity(isa: str) -> None:
    x = random(3, 40, 5, 20)
    x[0, ::3, 2, 7] = torch.nan
    x[1, ::5, 1, 19] = torch.inf
    x[1, ::7, 0, 0] = -torch.inf
    x[2, 1] = -torch.inf
    torch.testing.assert_close(fastsep.global_pool(x), reference.global_pool(x), equal_nan=True)


def test_threads_give_the_same_bits(isa: str, threads: Callable[[int], None]) -> None:
    x = random(5, 40, 7, 33)
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(fastsep.global_pool(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_gradients(backend: str) -> None:
    x = random(2, 3, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(fastsep.global_pool, (x,))
    assert torch.autograd.gradgradcheck(fastsep.global_pool, (x,))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(cpu_kernels: None, requires_grad: bool) -> None:
    for layout in LAYOUTS.values():
        x = layout(2, 5, 3, 4).detach().requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.fastsep.global_pool.default, (x,))


def test_compiles_in_one_graph(backend: str) -> None:
    compiled = torch.compile(fastsep.global_pool, fullgraph=True, backend="aot_eager")
    x = random(2, 5, 6, 7)
    torch.testing.assert_close(compiled(x), fastsep.global_pool(x), rtol=0, atol=1e-6)
    torch.compiler.reset()


def test_keeps_the_dtype_under_autocast(backend: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert fastsep.global_pool(random(1, 2, 3, 4)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (2, 3, 5, 0)])
def test_nothing_to_pool_is_an_error(backend: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one frame and one bin"):
        fastsep.global_pool(torch.empty(shape))
