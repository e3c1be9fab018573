"""Shared by the suites: threads and instruction set of a case, and its peak beside every figure."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.peaks import fma_peak
from fastsep import backends

Measure = Callable[..., Any]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), torch.ops.fastsep_cpu.isa()
    yield
    torch.set_num_threads(threads)
    torch.ops.fastsep_cpu.set_isa(isa)


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Measure:
    """measure(run, flop=..., isa=..., threads=...): times run() under inference mode, 20 times or,
    if that takes less, for a second.

    The FMA peak of that many threads is measured right before and right after; the better of the
    two is stored with the result.
    """

    def call(run: Callable[[], Any], *, flop: float, isa: str, threads: int, **notes: Any) -> None:
        before = fma_peak(isa, threads)
        with torch.inference_mode():
            run()
            start = time.perf_counter()
            run()
            rounds = max(20, math.ceil(1 / (time.perf_counter() - start)))
            benchmark.pedantic(run, rounds=rounds, warmup_rounds=rounds // 7)
        peak = max(before, fma_peak(isa, threads))
        benchmark.extra_info.update(notes, flop=flop, isa=isa, threads=threads, peak_gflops=peak)

    return call


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
