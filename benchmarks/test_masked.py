"""What masked copies of a clip cost, in forward passes of the same run."""

import time
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from asc.augment import draw_stripes
from asc.compute import Engine
from asc.prediction import masked_logits
from benchmarks import workloads
from benchmarks.measure import relative_error, widest_isa
from benchmarks.peaks import fma_peak

# Engine, copies, width of frequency stripes; copy by copy they cost the same whatever the stripes.
CASES: list[tuple[Engine, int, int]] = [
    *(("shared", copies, width) for copies in (1, 10, 30, 100) for width in (32, 16)),
    ("batched", 30, 32),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("engine", "copies", "width"), CASES)
def test_masked_copies(
    benchmark: BenchmarkFixture, engine: Engine, copies: int, width: int, threads: int
) -> None:
    """A clip a thread, from log-mels to logits, in turns with forward passes of eight clips."""
    isa = widest_isa()
    torch.ops.fastsep_cpu.set_isa(isa)
    torch.set_num_threads(threads)
    model, x = workloads.network(), workloads.clips(8)
    rng = torch.Generator().manual_seed(0)
    drawn = [
        draw_stripes(copies, 431, 256, freq_width=width, generator=rng) for _ in range(threads)
    ]
    stripes, forward = torch.stack(drawn), list[float]()

    def run() -> torch.Tensor:
        return masked_logits(model, x[:threads], stripes, engine=engine)

    def pass_in_turn() -> None:
        start = time.perf_counter()
        model(x)
        forward.append((time.perf_counter() - start) / len(x))

    before = fma_peak(isa, threads)
    with torch.inference_mode():
        some = stripes[0, :2]
        exact = workloads.network().double()(x[:1].double().expand(len(some), -1, -1, -1), some)
        error = relative_error(run()[0], exact)
        assert error <= 1e-4
        benchmark.pedantic(run, setup=pass_in_turn, rounds=9, warmup_rounds=2)
    if benchmark.stats is None:  # --benchmark-disable
        return
    passes = benchmark.stats.stats.median / threads / median(forward)
    benchmark.extra_info.update(
        system="fastsep" if engine == "shared" else "fastsep, copy by copy", batch=threads,
        case=f"{copies} masked copies, frequency stripes below {width}", passes=passes, flop=0,
        isa=isa, threads=threads, peak_gflops=max(before, fma_peak(isa, threads)),
        relative_error=error,
    )  # fmt: skip
