"""How a figure is taken: the result checked first, the peak of the machine measured around it."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.peaks import fma_peak
from fastsep import backends


def measure(
    benchmark: BenchmarkFixture,
    run: Callable[[], Any],
    *,
    exact: Tensor,
    flop: float,
    isa: str,
    threads: int,
    tolerance: float = 1e-4,
    training: bool = False,
    at_least: int = 20,
    **notes: Any,
) -> None:
    """Times run() under inference mode, so many times or, if that takes less, for a second.

    The FMA peak of that many threads is measured right before and right after; the better of the
    two is stored with the result, and so is the error.

    Args:
        run: what is timed; it returns a tensor, an array, or several of which the first counts.
        exact: its result in float64, or as much of its beginning as is compared.
        flop: floating-point operations of a run, 0 where they are not counted.
        isa: the instruction set whose peak the figure is a share of.
        tolerance: error, relative to the largest value, above which it is no result.
        training: with autograd instead.
        at_least: rounds; fewer of what takes seconds.
        notes: system, case, batch: what else the row says.

    Raises:
        AssertionError: run() computes something else.
    """
    before = fma_peak(isa, threads)
    with torch.inference_mode(not training):
        error = relative_error(run(), exact)
        assert error <= tolerance, f"off by {error:.3g} of the largest value, not {tolerance:.3g}"
        start = time.perf_counter()
        run()
        rounds = max(at_least, math.ceil(1 / (time.perf_counter() - start)))
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=rounds // 7)
    peak = max(before, fma_peak(isa, threads))
    benchmark.extra_info.update(notes, flop=int(flop), isa=isa, threads=threads, peak_gflops=peak,
                                relative_error=error)  # fmt: skip


def relative_error(result: Any, exact: Tensor) -> float:
    """The largest error of a result's first rows over the largest value; infinite where NaN."""
    first = result if isinstance(result, Tensor) else torch.as_tensor(result[0])
    difference = (first[: len(exact)].double() - exact).abs() / exact.abs().max()
    return difference.nan_to_num(torch.inf).max().item()


def best_isa(wanted: str) -> str:
    """An instruction set to measure; skips where the machine lacks it."""
    if not backends()["cpu"].available:
        pytest.skip("fastsep's C++ kernels are not built")
    if wanted not in torch.ops.fastsep_cpu.supported_isas():
        pytest.skip(f"this machine does not run {wanted}")
    return wanted


def widest_isa() -> str:
    """The best instruction set of the machine for float32."""
    supported = torch.ops.fastsep_cpu.supported_isas()
    return next(isa for isa in supported if isa != "avx512bf16")
