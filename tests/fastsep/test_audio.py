"""Log-mels: against float64, on every instruction set, and as PyTorch's citizen."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastsep
from fastsep import SparseFilters, kernels, log_mel, reference, sparse_filters


def waveform(n: int, samples: int, seed: int = 0) -> Tensor:
    return torch.randn(n, samples, generator=torch.Generator().manual_seed(seed))


def random_window(size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def random_filters(bins: int, filters: int, seed: int = 0) -> SparseFilters:
    """Anywhere, of any width from 0 on."""
    generator = torch.Generator().manual_seed(seed)
    bands = torch.randint(0, bins + 1, (filters, 2), generator=generator).sort(1).values.int()
    size = int((bands[:, 1] - bands[:, 0]).sum())
    return SparseFilters(bands, torch.rand(size, generator=generator))


LAYOUTS = {
    "contiguous": lambda x: x,
    "every other sample": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "samples first": lambda x: x.T.contiguous().T,
    "expanded": lambda x: x[:1].expand(x.shape),
}


def check(x: Tensor, window: Tensor, hop: int, filters: SparseFilters) -> None:
    """A bin of the transform by the rounding of its additions, which are log2(size) deep, and of
    the last ones, which are of other bins too; filters only add. Then two ulp of the decibels.
    """
    size = len(window)
    wide = SparseFilters(filters.bands, filters.weights.double())
    expected = reference.log_mel(x.double(), window.double(), hop, *wide)
    actual = log_mel(x, filters, window=window, hop_length=hop)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    assert actual.shape == (x.shape[0], 1 + (x.shape[1] - size % 2) // hop, len(filters.bands))
    if actual.numel() == 0:
        return
    eps = torch.finfo(torch.float32).eps
    half = size // 2
    padded = torch.nn.functional.pad(x.double()[None], (half, half), mode="reflect")[0]
    frames = padded.unfold(1, size, hop)[:, : expected.shape[1]] * window.double()
    largest = torch.fft.rfft(frames).abs().amax(2)
    off = eps * (math.log2(size) * frames.norm(dim=2) + 4 * largest)
    off += 2**-75  # whose square is no normal number
    sums = torch.stack([w.sum() for w in wide.weights.split(wide.bands.diff().flatten().tolist())])
    # The root of a filter's sum is a norm: it is off by no more than that of what the bins are.
    root = (10 ** (expected / 20)).clamp(min=1e-5)
    relative = off[..., None] * sums.sqrt() / root + eps * (half + 4)
    bound = 20 * torch.log10(1 + relative) + 2 * eps * expected.abs() + 1e-12
    above = (actual.double() - expected <= bound).all()
    # Downwards it may be all of it, to the floor.
    lost = torch.where(relative < 1, -20 * torch.log10(1 - relative.clamp(max=1 - 1e-9)), torch.inf)
    below = expected - actual.double() <= lost + 2 * eps * expected.abs() + 1e-12
    assert above and (below | (actual == -100)).all()
    assert (actual >= -100).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(
    n=st.integers(0, 3),
    size=st.sampled_from([32, 64, 128, 256, 512, 1024, 2048]),
    more=st.integers(1, 3000),
    hop=st.integers(1, 3000),
    filters=st.integers(0, 40),
    scale=st.sampled_from([1e-15, 1e-6, 1e-4, 1.0, 1e12]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_strides(
    isa: str,
    layout: Callable[[Tensor], Tensor],
    n: int,
    size: int,
    more: int,
    hop: int,
    filters: int,
    scale: float,
    seed: int,
) -> None:
    hop = max(hop, more // 40)
    x = layout(waveform(n, size // 2 + more, seed) * scale)
    check(x, random_window(size, seed), hop, random_filters(size // 2 + 1, filters, seed))


@pytest.mark.parametrize("size", [1, 2, 7, 16, 60, 96])
def test_windows_of_other_sizes_are_plain_pytorchs(backend: str, size: int) -> None:
    x, window, filters = waveform(2, 150), random_window(size), random_filters(size // 2 + 1, 5)
    actual = log_mel(x, filters, window=window, hop_length=size)
    assert torch.equal(actual, reference.log_mel(x, window, size, *filters))
    check(x, window, size, filters)


@pytest.mark.parametrize("bin_", [0, 1, 7, 256, 300, 511, 512])
def test_a_tone_is_in_its_bin(isa: str, bin_: int) -> None:
    """And next to nothing is in the others."""
    size = 1024
    x = torch.cos(2 * torch.pi * bin_ / size * torch.arange(4096).double()).float()[None]
    each = SparseFilters(
        torch.stack([torch.arange(513), torch.arange(1, 514)], 1).int(), torch.ones(513)
    )
    actual = log_mel(x, each, window=torch.ones(size), hop_length=size)[0, 2]
    amplitude = size if bin_ in (0, 512) else size / 2
    assert actual[bin_].item() == pytest.approx(20 * math.log10(amplitude), abs=1e-5)
    assert (actual[torch.arange(513) != bin_] < actual[bin_] - 100).all()


def test_every_power_of_two_and_what_is_next_to_one(isa: str) -> None:
    """The logarithm over all that is above the floor, in units of its last place: of a frame with
    one sample, whose spectrum is flat.
    """
    near = torch.cat([2 ** torch.linspace(-1, 1, 20_001), torch.tensor([1.0])])
    # of which the square is exact, so that what goes into the logarithm is known
    roots = torch.cat([near.sqrt() * 2.0**e for e in range(-16, 64)])
    roots = (roots.view(torch.int32) & ~0xFFF).view(torch.float32)
    x, window = torch.zeros(len(roots), 32), torch.zeros(32)
    x[:, 16], window[0] = roots, 1.0  # frame 1 is that of samples 16 to 47
    one = SparseFilters(torch.tensor([[0, 1]], dtype=torch.int32), torch.ones(1))
    actual = log_mel(x, one, window=window, hop_length=32)[:, 1, 0]
    expected = 10 * roots.double().square().clamp(min=float(torch.tensor(1e-10))).log10()
    nearest = expected.float().abs()
    ulp = (torch.nextafter(nearest, torch.tensor(torch.inf)) - nearest).double()
    assert ((actual.double() - expected).abs() <= 2 * ulp).all()


def test_nan_and_infinity(isa: str) -> None:
    """A frame without them does not feel those of its neighbours."""
    x, window, filters = waveform(1, 4000), random_window(64), random_filters(33, 30)
    x[0, 500], x[0, 1500], x[0, 2500], x[0, 3500] = torch.nan, torch.inf, -torch.inf, 1e30
    actual = log_mel(x, filters, window=window, hop_length=50)[0]
    expected = reference.log_mel(x, window, 50, *filters)[0]
    hears = filters.bands.diff().flatten() > 0
    assert (actual[:, ~hears] == -100).all()
    actual, expected = actual[:, hears], expected[:, hears]
    spoilt = (~expected.isfinite()).all(dim=1)
    assert spoilt.sum() == 4 and not actual[spoilt].isfinite().any()
    assert (actual[70] == torch.inf).all()  # its square is no float32
    torch.testing.assert_close(actual[~spoilt], expected[~spoilt], rtol=0, atol=1e-3)


def test_silence_is_the_floor_exactly(isa: str) -> None:
    x = torch.zeros(1, 2000)
    x[:, 1000:] = 1e-24  # whose square is no normal number
    actual = log_mel(x, random_filters(33, 20), window=random_window(64), hop_length=50)
    assert (actual == -100).all()


def test_threads_batch_and_place_give_the_same_bits(
    isa: str, threads: Callable[[int], None]
) -> None:
    x, filters = waveform(3, 64 * 45), random_filters(65, 37)
    options: dict[str, Any] = {"window": random_window(128), "hop_length": 64}
    threads(1)
    expected = log_mel(x, filters, **options)
    for count in (2, 4):
        threads(count)
        assert torch.equal(log_mel(x, filters, **options), expected)
    for n in range(3):
        assert torch.equal(log_mel(x[n : n + 1], filters, **options)[0], expected[n])
    for first in (1, 7, 40):  # without the frame that reflects another end
        actual = log_mel(x[:, 64 * first :], filters, **options)
        assert torch.equal(actual[:, 1:], expected[:, first + 1 :])


def arguments(samples: int = 100, seed: int = 0) -> tuple[Tensor, Tensor, int, Tensor, Tensor]:
    return waveform(2, samples, seed), random_window(32), 16, *random_filters(17, 5)


def called(x: Tensor, window: Tensor, hop: int, bands: Tensor, weights: Tensor) -> Tensor:
    return log_mel(x, SparseFilters(bands, weights), window=window, hop_length=hop)


def test_gradients(backend: str) -> None:
    """In plain PyTorch, whose own are right; the floor gives none."""
    x, window, hop, bands, weights = arguments()
    x[:, 50:] = 0
    leaves = [x, window, weights]
    for leaf in leaves:
        leaf.requires_grad_()
    called(x, window, hop, bands, weights).sum().backward()
    actual = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    reference.log_mel(x, window, hop, bands, weights).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0 and x.grad[:, 80:].abs().max() == 0
    for got, leaf in zip(actual, leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad, rtol=0, atol=0)


def test_functional_transforms(backend: str) -> None:
    x, window, hop, bands, weights = arguments()
    actual = torch.func.grad(lambda w: called(x, window, hop, bands, w).sum())(weights)
    leaf = weights.clone().requires_grad_()
    called(x, window, hop, bands, leaf).sum().backward()
    torch.testing.assert_close(actual, leaf.grad)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_opcheck(
    cpu_kernels: None, layout: Callable[[Tensor], Tensor], requires_grad: bool
) -> None:
    x, *others = arguments()
    x = layout(x).detach().requires_grad_(requires_grad)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    op = torch.ops.fastsep.log_mel.default
    torch.library.opcheck(op, (x, *others), test_utils=checks)


def test_compiles_in_one_graph(backend: str) -> None:
    compiled = torch.compile(called, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments()), called(*arguments()))
    torch.compiler.reset()


def test_autocast_does_not_touch_it(backend: str) -> None:
    expected = called(*arguments())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(called(*arguments()), expected)


def test_a_forced_backend_of_gpus_leaves_it_to_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "_forced", "cuda")
    assert torch.equal(called(*arguments()), reference.log_mel(*arguments()))


def test_a_node_of_a_graph() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, self.window, self.hop, self.bands, weights = arguments()
            self.weights = torch.nn.Parameter(weights)

        def forward(self, x: Tensor) -> Tensor:
            return called(x, self.window, self.hop, self.bands, self.weights)

    module, x = Module(), waveform(2, 77)
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
    x, window, hop, bands, weights = arguments()
    meta, below = bands.to("meta"), bands - 1 - bands.amin()
    bad: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (
            TypeError,
            "waveform must be torch.float32, got torch.float64",
            (x.double(), window, hop, bands, weights),
        ),
        (ValueError, r"\(N, samples\), got shape \(100,\)", (x[0], window, hop, bands, weights)),
        (ValueError, "more than 16 samples.*got 16", (x[:, :16], window, hop, bands, weights)),
        (TypeError, "window must be torch.float32", (x, window.double(), hop, bands, weights)),
        (ValueError, r"window must be \(n_fft\)", (x, window[None], hop, bands, weights)),
        (ValueError, "at least one sample", (x, window[:0], hop, bands, weights)),
        (ValueError, "window is on meta", (x, window.to("meta"), hop, bands, weights)),
        (ValueError, "hop_length must be at least 1, got 0", (x, window, 0, bands, weights)),
        (
            TypeError,
            "bands must be torch.int32, got torch.int64",
            (x, window, hop, bands.long(), weights),
        ),
        (TypeError, "weights must be torch.float32", (x, window, hop, bands, weights.double())),
        (
            ValueError,
            r"bands must be \(M, 2\), got shape \(5, 1\)",
            (x, window, hop, bands[:, :1], weights),
        ),
        (
            ValueError,
            r"bands must be \(M, 2\), got shape \(5,\)",
            (x, window, hop, bands[:, 0], weights),
        ),
        (ValueError, r"weights must be \(W\), got shape", (x, window, hop, bands, weights[None])),
        (ValueError, "bands hold .* bins but there are", (x, window, hop, bands, weights[1:])),
        (ValueError, r"within the 17 bins.*got \(-1", (x, window, hop, below, weights)),
        (ValueError, "within the 17 bins", (x, window, hop, bands + 17, weights)),
        (ValueError, "bands is on meta", (x, window, hop, meta, weights)),
    ]
    for error, message, args in bad:
        with pytest.raises(error, match=message):
            called(*args)
    with pytest.raises(TypeError, match="SparseFilters"):
        log_mel(x, bands, window=window, hop_length=hop)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="waveform must be a tensor, got ndarray"):
        called(x.numpy(), window, hop, bands, weights)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float64"):
        sparse_filters(torch.ones(3, 4).double())
    with pytest.raises(ValueError, match=r"\(F, M\)"):
        sparse_filters(torch.ones(3))


def test_the_operator_itself_refuses_what_does_not_fit(cpu_kernels: None) -> None:
    op, (x, window, hop, bands, weights) = torch.ops.fastsep.log_mel, arguments()
    bad: list[tuple[str, tuple[Any, ...]]] = [
        ("float32", (x.double(), window, hop, bands, weights)),
        ("float32", (x, window.double(), hop, bands, weights)),
        ("power of two", (x, window[:30], hop, bands, weights)),
        ("power of two", (x, window[:16], hop, bands, weights)),
        ("more than 16", (x[:, :16], window, hop, bands, weights)),
        ("at least 1", (x, window, 0, bands, weights)),
        ("int32", (x, window, hop, bands.long(), weights)),
        ("bands hold", (x, window, hop, bands, weights[1:])),
        ("of 17 bins", (x, window, hop, bands + 17, weights)),
    ]
    for message, args in bad:
        with pytest.raises(RuntimeError, match=message):
            op(*args)


def test_the_public_names() -> None:
    assert fastsep.log_mel is log_mel
    assert {"SparseFilters", "log_mel", "sparse_filters"} <= set(fastsep.__all__)
