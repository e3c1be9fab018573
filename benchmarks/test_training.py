"""A training step, whole and a block at a time, against other ways to take it.

A step: forward, cross entropy, backward, fused AdamW. Floating-point operations are those of three
passes (forward, gradients of maps, gradients of weights). With each goes what autograd keeps for
the backward pass and how far the memory of a process grows.
"""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from benchmarks import workloads
from benchmarks.measure import measure, widest_isa
from benchmarks.workloads import LAYERS
from fastsep import SepConvBlock
from fastsep.eager import to_eager

CASES = [(8, 1), (8, 2), (32, 1), (32, 2)]  # batch, threads
TOLERANCE = 1e-3  # batch norm's gradients are differences
SYSTEMS = ["fastsep", "eager, NCHW", "eager, channels_last", "torch.compile"]


@pytest.mark.parametrize(("batch", "threads"), CASES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_step(benchmark: BenchmarkFixture, system: str, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    give_back()
    peak = workloads.in_fresh_process(peak_bytes, system, batch, threads)
    step, exact = step_of(system, batch), workloads.exact_step(batch)
    measure(benchmark, step, exact=exact, tolerance=TOLERANCE, training=True, at_least=5,
            flop=3 * workloads.network_flop(batch), isa=widest_isa(), threads=threads,
            system=system, case="training step", batch=batch)  # fmt: skip
    benchmark.extra_info.update(saved_bytes=saved_bytes(step), peak_bytes=peak)


def give_back() -> None:
    """To the system, what a tuned allocator keeps of the case before: beside it the process that
    measures PyTorch's peak at batch 32 does not fit into 24 GB."""
    gc.collect()
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def step_of(system: str, batch: int) -> Callable[[], Tensor]:
    model, x, labels = workloads.learner()
    labels = labels[:batch]
    network, x = _as(system, model, x[:batch])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        result = workloads.step_result(loss, network)
        optimizer.step()
        return result

    return step


def saved_bytes(step: Callable[[], object]) -> int:
    """Of what autograd keeps during a step, inputs and parameters among it, a memory once."""
    seen: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return sum(seen.values())


def peak_bytes(system: str, batch: int, threads: int) -> int | None:
    """By how much two steps make the resident memory of a process grow that has taken none before;
    None where the system is not Linux."""
    torch.set_num_threads(threads)
    step, status = step_of(system, batch), Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size again
        before = _kilobytes(status, "VmHWM")
        step()
        step()
        return 1024 * (_kilobytes(status, "VmHWM") - before)
    except OSError:
        return None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("system", SYSTEMS[:3])
def test_block(benchmark: BenchmarkFixture, system: str, name: str, threads: int) -> None:
    """Forward and backward of one block, NCHW in and out, with the gradient of its input."""
    torch.set_num_threads(threads)
    layer = LAYERS[name]
    torch.manual_seed(0)
    block = SepConvBlock(layer.cin, layer.cout).train()
    inputs = workloads.maps(8, layer)
    grad = torch.randn_like(block(inputs))

    def gradient(block: nn.Module, inputs: Tensor, grad: Tensor) -> Tensor:
        leaf = inputs.detach().requires_grad_()
        return torch.autograd.grad(block(leaf), (leaf, *block.parameters()), grad)[0]

    exact = gradient(to_eager(block).double(), inputs.double(), grad.double())[:1]
    run, inputs = _as(system, block, inputs)
    measure(benchmark, lambda: gradient(run, inputs, grad), exact=exact, tolerance=TOLERANCE,
            training=True, at_least=5, flop=3 * workloads.block_flop(8, layer), isa=widest_isa(),
            threads=threads, system=system, case=f"training, {name}", batch=8)  # fmt: skip


def _as(system: str, model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The model as a system runs it, and its input."""
    if system == "fastsep":
        return model, x
    eager = to_eager(model)
    if system == "eager, channels_last":
        eager.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return eager, x.contiguous(memory_format=torch.channels_last)
    if system == "torch.compile":
        torch.compiler.reset()
        return torch.compile(eager, fullgraph=True, dynamic=False), x  # type: ignore[return-value]
    return eager, x


def _kilobytes(status: Path, name: str) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
