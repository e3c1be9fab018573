"""Log-mels of a spectrum: against float64, on every instruction set, and as PyTorch's citizen."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastsep
from fastsep import SparseFilters, kernels, log_mel, reference, sparse_filters

PER_LOG = 4.342944819032518  # 10 / log(10): dB a relative change


def spectrum(n: int, bins: int, frames: int, seed: int = 0) -> Tensor:
    """As torch.stft returns it: the bins of a frame next to each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, frames, bins, dtype=torch.complex64, generator=generator).transpose(1, 2)


def random_filters(bins: int, filters: int, seed: int = 0) -> SparseFilters:
    """Anywhere, of any width from 0 on."""
    generator = torch.Generator().manual_seed(seed)
    bands = torch.randint(0, bins + 1, (filters, 2), generator=generator).sort(1).values.int()
    size = int((bands[:, 1] - bands[:, 0]).sum())
    return SparseFilters(bands, torch.rand(size, generator=generator))


LAYOUTS = {
    "as torch.stft": lambda x: x,
    "contiguous": lambda x: x.contiguous(),
    "strided": lambda x: x.repeat_interleave(2, 2).repeat_interleave(3, 1)[:, ::3, ::2],
    "every other frame": lambda x: x.mT.repeat_interleave(2, 1).mT[:, :, ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
    "conjugated": lambda x: x.conj(),
}


def check(x: Tensor, filters: SparseFilters, most_bins: int) -> None:
    """The sum by the rounding of its terms and additions, all of which are positive; then two ulp
    of a number of dB that may be as large as 400.
    """
    wide = SparseFilters(filters.bands, filters.weights.double())
    expected = reference.log_mel(x.to(torch.complex128), *wide)
    actual = log_mel(x, filters)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    assert actual.shape == (x.shape[0], x.shape[2], len(filters.bands))
    eps = torch.finfo(torch.float32).eps
    bound = PER_LOG * (most_bins + 4) * eps + 2 * eps * expected.abs() + 1e-12
    assert ((actual.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(0, 40)),
    filters=st.integers(0, 40),
    scale=st.sampled_from([1e-15, 1e-6, 1e-4, 1.0, 1e12]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_strides(
    isa: str,
    layout: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    filters: int,
    scale: float,
    seed: int,
) -> None:
    check(layout(spectrum(*shape, seed) * scale), random_filters(shape[1], filters, seed), shape[1])


def test_every_power_of_two_and_what_is_next_to_one(isa: str) -> None:
    """The logarithm over all that is above the floor, in units of its last place."""
    near = torch.cat([2 ** torch.linspace(-1, 1, 20_001), torch.tensor([1.0])])
    # of which the square is exact, so that what goes into the logarithm is known
    roots = torch.cat([near.sqrt() * 2.0**e for e in range(-16, 64)])
    roots = (roots.view(torch.int32) & ~0xFFF).view(torch.float32)
    one = SparseFilters(torch.tensor([[0, 1]], dtype=torch.int32), torch.ones(1))
    actual = log_mel(roots.to(torch.complex64)[None, None], one)[0, :, 0]
    expected = 10 * roots.double().square().clamp(min=float(torch.tensor(1e-10))).log10()
    nearest = expected.float().abs()
    ulp = (torch.nextafter(nearest, torch.tensor(torch.inf)) - nearest).double()
    assert ((actual.double() - expected).abs() <= 2 * ulp).all()


def test_nan_and_infinity(isa: str) -> None:
    x = spectrum(1, 40, 20)
    x[0, 3, 2] = torch.nan
    x[0, 5, 4] = complex(torch.inf, 1)
    x[0, 6, 4] = complex(1, -torch.inf)
    x[0, 5, 5], x[0, 6, 5] = torch.nan, torch.inf
    x[0, :, 6] = 1e30  # whose square is no float32
    filters = random_filters(40, 30)
    expected = reference.log_mel(x, *filters)
    assert expected.isnan().any() and expected.isinf().any() and expected.isfinite().any()
    torch.testing.assert_close(log_mel(x, filters), expected, equal_nan=True)


def test_silence_is_the_floor_exactly(isa: str) -> None:
    x = torch.zeros(1, 33, 9, dtype=torch.complex64)
    x[:, :, ::2] = 1e-24  # whose square is no normal number
    assert (log_mel(x, random_filters(33, 20)) == -100).all()


def test_threads_batch_and_place_give_the_same_bits(
    isa: str, threads: Callable[[int], None]
) -> None:
    x, filters = spectrum(3, 70, 45), random_filters(70, 37)
    threads(1)
    expected = log_mel(x, filters)
    for count in (2, 4):
        threads(count)
        assert torch.equal(log_mel(x, filters), expected)
    for n in range(3):
        assert torch.equal(log_mel(x[n : n + 1], filters)[0], expected[n])
    for first in (1, 7, 44):
        assert torch.equal(log_mel(x[:, :, first:], filters), expected[:, first:])


def test_gradients(backend: str) -> None:
    """In plain PyTorch, whose own are right; the floor gives none."""
    x = (spectrum(2, 9, 4) * torch.linspace(0, 1, 4)).requires_grad_()
    bands, weights = random_filters(9, 5)
    weights.requires_grad_()
    log_mel(x, SparseFilters(bands, weights)).sum().backward()
    actual = x.grad, weights.grad
    x.grad = weights.grad = None
    reference.log_mel(x, bands, weights).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0 and x.grad[:, :, 0].abs().max() == 0
    for got, expected in zip(actual, (x.grad, weights.grad), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_functional_transforms(backend: str) -> None:
    x, (bands, weights) = spectrum(2, 9, 4), random_filters(9, 5)
    actual = torch.func.grad(lambda w: log_mel(x, SparseFilters(bands, w)).sum())(weights)
    leaf = weights.clone().requires_grad_()
    log_mel(x, SparseFilters(bands, leaf)).sum().backward()
    torch.testing.assert_close(actual, leaf.grad)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_opcheck(
    cpu_kernels: None, layout: Callable[[Tensor], Tensor], requires_grad: bool
) -> None:
    x = layout(spectrum(2, 9, 4)).detach().requires_grad_(requires_grad)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    op = torch.ops.fastsep.log_mel.default
    torch.library.opcheck(op, (x, *random_filters(9, 5)), test_utils=checks)


def test_compiles_in_one_graph(backend: str) -> None:
    x, filters = spectrum(2, 9, 7), random_filters(9, 5)
    compiled = torch.compile(log_mel, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, filters), log_mel(x, filters))
    torch.compiler.reset()


def test_autocast_does_not_touch_it(backend: str) -> None:
    x, filters = spectrum(2, 9, 7), random_filters(9, 5)
    expected = log_mel(x, filters)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_mel(x, filters), expected)


def test_a_forced_backend_of_gpus_leaves_it_to_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, filters = spectrum(2, 9, 7), random_filters(9, 5)
    monkeypatch.setattr(kernels, "_forced", "cuda")
    assert torch.equal(log_mel(x, filters), reference.log_mel(x, *filters))


def test_a_node_of_a_graph() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bands, weights = random_filters(9, 5)
            self.weights = torch.nn.Parameter(weights)

        def forward(self, x: Tensor) -> Tensor:
            return log_mel(x, SparseFilters(self.bands, self.weights))

    module, x = Module(), spectrum(2, 9, 7)
    graph = torch.fx.symbolic_trace(module)
    assert log_mel in [node.target for node in graph.graph.nodes]
    assert torch.equal(graph(x), module(x))


# Filters.


@given(st.integers(0, 12), st.integers(0, 6), st.integers(0, 99))
def test_sparse_filters_hold_what_the_dense_ones_hold(bins: int, filters: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(bins, filters, generator=generator)
    dense *= torch.rand(bins, filters, generator=generator) > 0.7
    bands, weights = sparse_filters(dense)
    assert bands.dtype == torch.int32
    again = torch.zeros(bins, filters)
    first = 0
    for m, (start, stop) in enumerate(bands.tolist()):
        again[start:stop, m] = weights[first : first + stop - start]
        first += stop - start
        if start < stop:  # no zeros at the ends
            assert dense[start, m] != 0 and dense[stop - 1, m] != 0
    assert torch.equal(again, dense)
    assert first == len(weights)


def test_what_does_not_fit_is_named(backend: str) -> None:
    x, (bands, weights) = spectrum(2, 9, 7), random_filters(9, 5)
    bad = [
        (TypeError, "spectrum must be torch.complex64, got torch.float32", x.real, bands, weights),
        (TypeError, "got torch.complex128", x.to(torch.complex128), bands, weights),
        (ValueError, r"\(N, F, T\), got shape \(9, 7\)", x[0], bands, weights),
        (TypeError, "bands must be torch.int32, got torch.int64", x, bands.long(), weights),
        (TypeError, "weights must be torch.float32", x, bands, weights.double()),
        (ValueError, r"bands must be \(M, 2\), got shape \(5, 1\)", x, bands[:, :1], weights),
        (ValueError, r"bands must be \(M, 2\), got shape \(5,\)", x, bands[:, 0], weights),
        (ValueError, r"weights must be \(W\), got shape", x, bands, weights[None]),
        (ValueError, "bands hold .* bins but there are", x, bands, weights[1:]),
        (ValueError, r"within the 9 bins.*got \(-1, ", x, bands - 1 - bands.amin(), weights),
        (ValueError, r"within the 5 bins", x[:, :5], bands, weights),
        (ValueError, "bands is on meta", x, bands.to("meta"), weights),
    ]
    for error, message, spectrum_, *filters in bad:
        with pytest.raises(error, match=message):
            log_mel(spectrum_, SparseFilters(*filters))
    with pytest.raises(TypeError, match="SparseFilters"):
        log_mel(x, bands)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="spectrum must be a tensor, got ndarray"):
        log_mel(x.numpy(), SparseFilters(bands, weights))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float64"):
        sparse_filters(torch.ones(3, 4).double())
    with pytest.raises(ValueError, match=r"\(F, M\)"):
        sparse_filters(torch.ones(3))


def test_the_operator_itself_refuses_what_does_not_fit(cpu_kernels: None) -> None:
    op, x, (bands, weights) = torch.ops.fastsep.log_mel, spectrum(2, 9, 7), random_filters(9, 5)
    with pytest.raises(RuntimeError, match="complex64"):
        op(x.real, bands, weights)
    with pytest.raises(RuntimeError, match="int32"):
        op(x, bands.long(), weights)
    with pytest.raises(RuntimeError, match="bands hold"):
        op(x, bands, weights[1:])
    with pytest.raises(RuntimeError, match="of 5 bins"):
        op(x[:, :5], bands, weights)


def test_the_public_names() -> None:
    assert fastsep.log_mel is log_mel
    assert {"SparseFilters", "log_mel", "sparse_filters"} <= set(fastsep.__all__)
