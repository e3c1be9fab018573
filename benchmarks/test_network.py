"""The whole network from log-mel to logits, folded, against other ways to run it."""

import copy
from typing import Any

import pytest
import torch

from asc.eager import EagerTwin
from benchmarks import peers, workloads
from benchmarks.conftest import Measure, best_isa, widest_isa

CASES = [(8, 2), (1, 2), (8, 1)]  # batch, threads


@pytest.mark.parametrize(("batch", "threads"), CASES)
@pytest.mark.parametrize("mode", ["float32", "bf16", "float32, AVX2"])
def test_fastsep(measure: Measure, mode: str, batch: int, threads: int) -> None:
    isa = best_isa({"bf16": "avx512bf16", "float32, AVX2": "avx2"}.get(mode, widest_isa()))
    torch.ops.fastsep_cpu.set_isa(isa)
    torch.set_num_threads(threads)
    model, x = workloads.network(), workloads.clips(batch)
    model.blocks.compute = "bf16" if mode == "bf16" else None
    measure(lambda: model(x), flop=workloads.network_flop(batch), isa=isa, threads=threads,
            system=f"fastsep, {mode}", batch=batch)  # fmt: skip


@pytest.mark.parametrize(("batch", "threads"), CASES)
@pytest.mark.parametrize("peer", list(peers.PEERS))
def test_peer(measure: Measure, peer: str, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    model, x = workloads.network(), workloads.clips(batch)
    expected = model(x)
    run = peers.PEERS[peer](EagerTwin(copy.deepcopy(model)).eval(), x, threads)
    with torch.inference_mode():
        _check_same(run(), expected, tolerance=0.1 if "bf16" in peer else 1e-4)
    measure(run, flop=workloads.network_flop(batch), isa=widest_isa(), threads=threads,
            system=peer, batch=batch)  # fmt: skip


def _check_same(result: Any, expected: torch.Tensor, tolerance: float) -> None:
    """A peer that computes something else is no peer."""
    logits = torch.as_tensor(result if isinstance(result, torch.Tensor) else result[0])
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()
