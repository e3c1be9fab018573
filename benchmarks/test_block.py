"""Single operators and blocks, NCHW in and out, on the network's shapes and on odd ones."""

import pytest
import torch

import fastsep
from asc.eager import EagerBlock
from benchmarks import workloads
from benchmarks.conftest import Measure, widest_isa

# Cin, Cout, T, F
NETWORK = {
    "block 1": (1, 64, 431, 256),
    "block 2": (64, 128, 215, 128),
    "block 3": (128, 128, 107, 64),
    "block 4": (128, 128, 53, 32),
}
OTHER = {  # with the dilation
    "F = 64": (64, 128, 215, 64, 2),
    "F = 80": (64, 128, 215, 80, 2),
    "T, F odd": (64, 128, 213, 127, 2),
    "Cout = 48": (64, 48, 215, 128, 2),
    "Cout = 96": (64, 96, 215, 128, 2),
    "Cout = 256": (64, 256, 215, 128, 2),
    "dilation 1": (64, 128, 215, 128, 1),
    "dilation 3": (64, 128, 215, 128, 3),
}
BATCH = 8


def _case(shape: tuple[int, ...]) -> tuple[fastsep.BlockParameters, torch.Tensor, float]:
    cin, cout, frames, bins = shape[:4]
    block = workloads.block(cin, cout, *shape[4:])
    x = torch.randn(BATCH, cin, frames, bins)
    return block, x, workloads.block_flop(BATCH, cin, cout, frames, bins)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", list(NETWORK))
@pytest.mark.parametrize("system", ["fastsep", "eager, NCHW", "eager, channels_last"])
def test_block(measure: Measure, system: str, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    block, x, flop = _case(NETWORK[name])
    eager = EagerBlock(block).eval()
    if system == "eager, channels_last":
        eager.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)

    def fused() -> torch.Tensor:
        return fastsep.sep_conv2d_block(x, *block[:4], dilation=block.dilation, pool=block.pool)

    measure(fused if system == "fastsep" else lambda: eager(x), flop=flop, isa=widest_isa(),
            threads=threads, system=system, case=name, batch=BATCH)  # fmt: skip


@pytest.mark.parametrize("name", list(NETWORK))
def test_operator(measure: Measure, name: str) -> None:
    torch.set_num_threads(1)
    block, x, flop = _case(NETWORK[name])
    measure(lambda: fastsep.sep_conv2d(x, *block[:3], dilation=block.dilation), flop=flop,
            isa=widest_isa(), threads=1, system="fastsep", case=f"operator of {name}",
            batch=BATCH)  # fmt: skip


@pytest.mark.parametrize("name", list(OTHER))
def test_other_shapes(measure: Measure, name: str) -> None:
    torch.set_num_threads(1)
    block, x, flop = _case(OTHER[name])
    measure(lambda: fastsep.sep_conv2d_stack(x, [block]), flop=flop, isa=widest_isa(), threads=1,
            system="fastsep", case=name, batch=BATCH)  # fmt: skip
