"""Single operators and blocks, NCHW in and out, on the network's shapes and on odd ones."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fastsep
from benchmarks import workloads
from benchmarks.measure import measure, widest_isa
from benchmarks.workloads import LAYERS, Layer
from fastsep.eager import to_eager

OTHER = {  # with the dilation
    "F = 64": (Layer(64, 128, 215, 64), 2),
    "F = 80": (Layer(64, 128, 215, 80), 2),
    "T, F odd": (Layer(64, 128, 213, 127), 2),
    "Cout = 48": (Layer(64, 48, 215, 128), 2),
    "Cout = 96": (Layer(64, 96, 215, 128), 2),
    "Cout = 256": (Layer(64, 256, 215, 128), 2),
    "dilation 1": (Layer(64, 128, 215, 128), 1),
    "dilation 3": (Layer(64, 128, 215, 128), 3),
}
BATCH = 8


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("system", ["fastsep", "eager, NCHW", "eager, channels_last"])
def test_block(benchmark: BenchmarkFixture, system: str, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    layer = LAYERS[name]
    block, x = workloads.block(layer.cin, layer.cout), workloads.maps(BATCH, layer)
    exact = workloads.exact_block(x, block)
    eager = to_eager(workloads.layer_of(block))
    if system == "eager, channels_last":
        eager.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)

    def fused() -> torch.Tensor:
        return fastsep.sep_conv2d_block(x, *block[:4], dilation=block.dilation, pool=block.pool)

    measure(benchmark, fused if system == "fastsep" else lambda: eager(x),
            exact=exact, flop=workloads.block_flop(BATCH, layer), isa=widest_isa(),
            threads=threads, system=system, case=name, batch=BATCH)  # fmt: skip


@pytest.mark.parametrize("name", list(LAYERS))
def test_operator(benchmark: BenchmarkFixture, name: str) -> None:
    torch.set_num_threads(1)
    layer = LAYERS[name]
    block, x = workloads.block(layer.cin, layer.cout), workloads.maps(BATCH, layer)
    measure(benchmark, lambda: fastsep.sep_conv2d(x, *block[:3], dilation=block.dilation),
            exact=workloads.exact_block(x, block, pooled=False),
            flop=workloads.block_flop(BATCH, layer), isa=widest_isa(), threads=1,
            system="fastsep", case=f"operator of {name}", batch=BATCH)  # fmt: skip


@pytest.mark.parametrize("name", list(OTHER))
def test_other_shapes(benchmark: BenchmarkFixture, name: str) -> None:
    torch.set_num_threads(1)
    layer, dilation = OTHER[name]
    block = workloads.block(layer.cin, layer.cout, dilation)
    x = workloads.maps(BATCH, layer)
    measure(benchmark, lambda: fastsep.sep_conv2d_stack(x, [block]),
            exact=workloads.exact_block(x, block), flop=workloads.block_flop(BATCH, layer),
            isa=widest_isa(), threads=1, system="fastsep", case=name, batch=BATCH)  # fmt: skip
