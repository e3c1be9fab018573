"""What the tests share: the backend under test, random weights, and how far rounding may go.

Tests of the C++ backend are skipped where it was not built. In CI, or with
FASTSEP_TEST_REQUIRE_CPU=1, they fail instead; FASTSEP_TEST_REQUIRE_CPU=0 is for testing a
pure-Python install there.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

import fastsep
from fastsep import reference
from fastsep.kernels import interpreted

CI = bool(os.environ.get("CI"))
REQUIRE_CPU = os.environ.get("FASTSEP_TEST_REQUIRE_CPU", str(int(CI))) == "1"

INTERPRETED = (
    interpreted()
)  # Triton's kernels run in place of the C++ ones: a few small shapes only

settings.register_profile(
    "fastsep",
    deadline=None,
    database=None,
    print_blob=True,
    derandomize=CI,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastsep")

ISAS = ("avx512bf16", "avx512", "avx2", "baseline")

# (pointwise, time_taps, freq_taps, bias, dilation, pool); pool None: neither ReLU nor pooling.
Block = tuple[Tensor, Tensor, Tensor, Tensor | None, int, int | None]


@pytest.fixture(scope="session")
def cpu_kernels() -> None:
    """Asked for by every test that needs the C++ backend."""
    if INTERPRETED:
        return
    status = fastsep.backends()["cpu"]
    if not status.available:
        (pytest.fail if REQUIRE_CPU else pytest.skip)(f"no C++ backend: {status.detail}")


@pytest.fixture
def all_isas() -> tuple[str, ...]:
    """The C++ kernels' instruction sets, whether or not this machine runs them."""
    return ISAS


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, cpu_kernels: None) -> Iterator[str]:
    """Forces an instruction set for one test."""
    if request.param not in torch.ops.fastsep_cpu.supported_isas():
        pytest.skip(f"this machine does not run {request.param}")
    before = torch.ops.fastsep_cpu.isa()
    torch.ops.fastsep_cpu.set_isa(request.param)
    yield request.param
    torch.ops.fastsep_cpu.set_isa(before)


@pytest.fixture(params=["triton"] if INTERPRETED else ["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on the C++ kernels and on plain PyTorch; or on Triton's."""
    if request.param == "cpu":
        request.getfixturevalue("cpu_kernels")
    with fastsep.use_backend(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """f(code, VARIABLE="value"): runs code in a fresh interpreter that imports this fastsep."""
    home = str(Path(fastsep.__file__).parents[1])

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FASTSEP_")}
        return subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**inherited, "PYTHONPATH": home, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def weights() -> Callable[..., tuple[Any, Any, Any, Any]]:
    """f(cin, cout, dtype, seed): pointwise, time_taps, freq_taps, bias such that y is about 1."""

    def draw(cin: int, cout: int, dtype: torch.dtype, seed: int = 0) -> tuple[Any, Any, Any, Any]:
        rng = torch.Generator().manual_seed(seed)

        def normal(scale: float, *shape: int) -> Tensor:
            return (scale * torch.randn(shape, generator=rng)).to(dtype)

        pointwise = normal(max(cin, 1) ** -0.5, cout, cin)
        return pointwise, normal(0.5, cout, 3), normal(0.5, cout, 3), normal(0.5, cout)

    return draw


@pytest.fixture(scope="session")
def check_forward() -> Callable[..., None]:
    """f(actual, x, blocks, affine, stripes): actual is what the blocks make of x, to rounding.

    products: a type that the factors of the 1x1 convolutions may be rounded to.
    """

    def check(
        actual: Tensor,
        x: Tensor,
        blocks: Sequence[Block],
        affine: tuple[Tensor, Tensor] | None = None,
        stripes: Tensor | None = None,
        products: torch.dtype | None = None,
    ) -> None:
        expected, error = _forward(x, blocks, affine, stripes, products)
        _assert_within(actual, expected, error, x.dtype, "output")

    return check


@pytest.fixture(scope="session")
def check_gradients() -> Callable[..., None]:
    """f(actual, grad, x, block): actual are the gradients of x and the weights, or None."""

    def check(actual: Sequence[Tensor | None], grad: Tensor, x: Tensor, block: Block) -> None:
        names = ("x", "pointwise", "time_taps", "freq_taps", "bias")
        bounds = _gradients(grad, x, block)
        for name, got, (expected, error) in zip(names, actual, bounds, strict=False):
            if got is not None:
                _assert_within(got, expected, error, x.dtype, f"gradient of {name}")

    return check


# How far rounding may go.
#
# A sum of n products computed in any order, with or without fused multiply-add, is off by at most
# gamma_n * sum |terms| with gamma_n = n u / (1 - n u) and u = eps / 2 (Higham, Accuracy and
# Stability of Numerical Algorithms, section 3.1). The bounds here take n * eps, twice that, which
# leaves room for the rounding of the float64 expectation itself. sum |terms| is the same
# computation on absolute values. float16 and bfloat16 accumulate in float32 and round once more
# when stored; between the blocks of a stack a map may be stored or kept in float32.


def _eps(dtype: torch.dtype) -> float:
    """Of the type that `dtype` accumulates in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _stored(y: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """The error after y, known to `error`, is rounded to `dtype`."""
    smallest = 2.0**-24 if dtype == torch.float16 else 2.0**-126  # subnormals may be flushed
    rounding = torch.finfo(dtype).eps / (1 if INTERPRETED else 2)  # the interpreter truncates
    return error + rounding * (y.abs() + error) + smallest


def _convolve(
    y: Tensor, error: Tensor, block: Block, eps: float, products: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The operator on a float64 map known to `error`: (y, error)."""
    pointwise, time, freq, bias, dilation, _ = block
    terms = pointwise.shape[1] + 6 + 1 + 3  # products, taps, bias; merged centre taps and slack
    sizes = pointwise.abs(), time.abs(), freq.abs()
    offset = None if bias is None else bias.abs()
    spread = reference.sep_conv2d(error, *sizes, None, dilation)
    size = reference.sep_conv2d(y.abs() + error, *sizes, offset, dilation)
    y = reference.sep_conv2d(y, pointwise, time, freq, bias, dilation)
    rounded = 0 if products is None else 1.01 * torch.finfo(products).eps  # (1 + eps / 2)^2 - 1
    return y, spread + (terms * eps + rounded) * size


def _forward(
    x: Tensor,
    blocks: Sequence[Block],
    affine: tuple[Tensor, Tensor] | None = None,
    stripes: Tensor | None = None,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The blocks of x in float64 and a bound on what x's own dtype may make of them."""
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
        error = _stored(y, error, dtype)
    return y, error


def _gradients(grad: Tensor, x: Tensor, block: Block) -> list[tuple[Tensor, Tensor]]:
    """(gradient in float64, bound) for x and each weight.

    Where a pre-activation is within rounding of 0, either side of the ReLU's kink is right: what
    flows through there is added to the bound.
    """
    dtype, eps = x.dtype, _eps(x.dtype)
    n, _, frames, bins = x.shape
    pointwise, time, freq, bias, dilation, pool = _double(block)
    x, grad = x.double(), grad.double()
    y, error = _convolve(x, torch.zeros_like(x), (pointwise, time, freq, bias, dilation, None), eps)
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
    # On a GPU the factors of all products have the dtype of x, also those of dz with x and P.
    dz = torch.finfo(dtype).eps if INTERPRETED else 0
    rounded = (dz, dz, 0, 0, 0)
    return [
        (g, _stored(g, f + ((m + 12) * eps + r) * s, dtype))  # 12: taps, pooling's divisor, slack
        for g, s, f, m, r in zip(exact, size, flips, terms, rounded, strict=True)
    ]


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


def _assert_within(
    actual: Tensor, expected: Tensor, error: Tensor, dtype: torch.dtype, what: str
) -> None:
    assert actual.dtype == dtype, f"{what}: {actual.dtype}, expected {dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, expected {expected.shape}"
    excess = (actual.detach().double() - expected).abs() / error
    bad = ~(excess <= 1)  # catches NaN too
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.numel()} elements are off by more than rounding; "
            f"the worst {excess.nan_to_num(torch.inf).max():.3g} times; "
            f"first at {where}: {actual[where].item()}, expected {expected[where].item()}"
        )
