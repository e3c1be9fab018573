"""What the tests share: the backend under test, random weights, checks of results to rounding.

Tests of the C++ backend are skipped where it was not built. In CI, or with
FASTSEP_TEST_REQUIRE_CPU=1, they fail instead; FASTSEP_TEST_REQUIRE_CPU=0 is for testing a
pure-Python install there. FASTSEP_TEST_ISAS names the instruction sets to force in turn.
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
from fastsep.kernels import interpreted
from fastsep.testing import (
    GRADIENTS,
    Block,
    forward_bound,
    gradient_bounds,
    rounding_of,
    share_of_bound,
)

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
FORCED = tuple(os.environ.get("FASTSEP_TEST_ISAS", "").split()) or ISAS


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


@pytest.fixture(params=FORCED)
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


# Triton's interpreter truncates what it stores. In Triton's kernels, on a GPU too, the factors of
# all products have the dtype of x, also those of dz with x and P.


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
        rounded = 0.0 if products is None else rounding_of(products)
        bounds = forward_bound(x, blocks, affine, stripes, products=rounded, truncates=INTERPRETED)
        share_of_bound("output", actual, *bounds, x.dtype)

    return check


@pytest.fixture(scope="session")
def check_gradients() -> Callable[..., None]:
    """f(actual, grad, x, block): actual are the gradients of x and the weights, or None.

    triton: whether Triton's kernels computed them.
    """

    def check(
        actual: Sequence[Tensor | None],
        grad: Tensor,
        x: Tensor,
        block: Block,
        triton: bool = INTERPRETED,
    ) -> None:
        dz = torch.finfo(x.dtype).eps if triton else 0
        bounds = gradient_bounds(
            grad, x, block, backward_products=(dz, dz, 0, 0, 0), truncates=INTERPRETED
        )
        for name, got, bound in zip(GRADIENTS, actual, bounds, strict=False):
            if got is not None:
                share_of_bound(f"gradient of {name}", got, *bound, x.dtype)

    return check
