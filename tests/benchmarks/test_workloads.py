"""The one table of the network's layers, and what counts as right."""

from functools import partial

import pytest
import torch

import fastsep
from benchmarks import workloads
from benchmarks.workloads import LAYERS, Layer
from fastsep.eager import to_eager


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
    fused = fastsep.sep_conv2d_block(x, *block[:4], dilation=3)
    operator = fastsep.sep_conv2d(x, *block[:3], dilation=3)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(fused[:1].double(), exact)
    close(operator[:1].double(), bare)
    for pooled, expected in ((True, fused), (False, operator)):
        layer = workloads.layer_of(block, pooled=pooled)
        close(layer(x), expected)
        close(to_eager(layer)(x), expected)


def test_exact_gradients_are_those_of_all_clips() -> None:
    """Though they are computed a few at a time."""
    layer = Layer(3, 5, 9, 12)
    x, block = workloads.maps(11, layer).requires_grad_(), workloads.block(3, 5)
    grad = torch.randn(11, 5, 9, 12, generator=torch.Generator().manual_seed(0))
    weights = [w.requires_grad_() for w in block[:3]]
    p, a, b = weights
    dx, *rest = torch.autograd.grad(fastsep.sep_conv2d(x, p, a, b), (x, *weights), grad)
    exact = workloads.exact_gradients(x, grad, block)
    for got, wanted in zip((dx[:1], *rest), exact, strict=True):
        assert wanted.dtype == torch.float64
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)
