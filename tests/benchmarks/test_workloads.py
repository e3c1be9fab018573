"""The one table of the network's layers, and what counts as right."""

import pytest
import torch

import fastsep
from benchmarks import workloads
from benchmarks.workloads import LAYERS, Layer


def test_the_table_is_the_network() -> None:
    x, seen = workloads.clips(1), []
    with torch.no_grad():
        for block in workloads.network().blocks:
            y = block(x)
            seen.append(Layer(x.shape[1], y.shape[1], *x.shape[2:]))
            x = y
    assert seen == list(LAYERS.values())
    assert LAYERS["block 2"] == Layer(64, 128, 215, 128)
    assert workloads.network_flop(1) == pytest.approx(848e6, rel=0.001)
    assert workloads.network_flop(8) == 8 * workloads.network_flop(1)


def test_exact_results_are_those_of_the_layer() -> None:
    x, block = workloads.maps(2, Layer(3, 5, 9, 12)), workloads.block(3, 5, dilation=3)
    exact, bare = workloads.exact_block(x, block), workloads.exact_block(x, block, pooled=False)
    assert exact.dtype == bare.dtype == torch.float64
    ours = fastsep.sep_conv2d_block(x, *block[:4], dilation=3)[:1]
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)
    ours = fastsep.sep_conv2d(x, *block[:3], dilation=3)[:1]
    torch.testing.assert_close(ours.double(), bare, rtol=1e-4, atol=1e-5)
