"""The whole network from log-mel to logits, folded, against other ways to run it."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import peers, workloads
from benchmarks.measure import best_isa, measure, widest_isa
from fastsep.eager import to_eager

CASES = [(8, 2), (1, 2), (8, 1)]  # batch, threads
BF16 = 0.1  # tolerance where products are bfloat16's


@pytest.mark.parametrize(("batch", "threads"), CASES)
@pytest.mark.parametrize("mode", ["float32", "bf16", "float32, AVX2"])
def test_fastsep(benchmark: BenchmarkFixture, mode: str, batch: int, threads: int) -> None:
    isa = best_isa({"bf16": "avx512bf16", "float32, AVX2": "avx2"}.get(mode, widest_isa()))
    torch.ops.fastsep_cpu.set_isa(isa)
    torch.set_num_threads(threads)
    model, x = workloads.network(), workloads.clips(batch)
    model.blocks.compute = "bf16" if mode == "bf16" else None
    measure(benchmark, lambda: model(x), exact=workloads.exact_logits(batch),
            tolerance=BF16 if mode == "bf16" else 1e-4, flop=workloads.network_flop(batch),
            isa=isa, threads=threads, system=f"fastsep, {mode}", batch=batch)  # fmt: skip


@pytest.mark.parametrize(("batch", "threads"), CASES)
@pytest.mark.parametrize("peer", list(peers.PEERS))
def test_peer(benchmark: BenchmarkFixture, peer: str, batch: int, threads: int) -> None:
    """A peer that computes something else is no peer: `measure` sees to it."""
    torch.set_num_threads(threads)
    model, x = workloads.network(), workloads.clips(batch)
    run = peers.PEERS[peer](to_eager(model), x, threads)
    measure(benchmark, run, exact=workloads.exact_logits(batch),
            tolerance=BF16 if "bf16" in peer else 1e-4, flop=workloads.network_flop(batch),
            isa=widest_isa(), threads=threads, system=peer, batch=batch)  # fmt: skip
