"""The specification itself, against PyTorch's own operators."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastsep import reference

stripe = st.tuples(st.sampled_from([0, 1, 0, 1, 2]), st.integers(-4, 24), st.integers(-4, 40))


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_reference_is_three_convolutions(
    dilation: int, weights: Callable[..., tuple[Any, Any, Any, Any]]
) -> None:
    x = random((2, 5, 9, 8), 0)
    pointwise, time, freq, bias = weights(5, 7, torch.float64)
    z = F.conv2d(x, pointwise[:, :, None, None])
    along_time = F.conv2d(
        z, time[:, None, :, None], padding=(dilation, 0), dilation=dilation, groups=7
    )
    along_freq = F.conv2d(
        z, freq[:, None, None, :], padding=(0, dilation), dilation=dilation, groups=7
    )
    y = along_time + along_freq + bias[:, None, None]
    torch.testing.assert_close(
        reference.sep_conv2d(x, pointwise, time, freq, bias, dilation), y, rtol=0, atol=1e-14
    )
    for pool in (1, 2, 3):
        torch.testing.assert_close(
            reference.sep_conv2d_block(x, pointwise, time, freq, bias, dilation, pool),
            F.avg_pool2d(torch.relu(y), pool),
            rtol=0,
            atol=1e-14,
        )


@settings(max_examples=50)
@given(st.lists(st.lists(stripe, min_size=2, max_size=2), min_size=3, max_size=3))
def test_reference_load_is_affine_then_stripes(stripes: list[list[tuple[int, int, int]]]) -> None:
    x = random((3, 2, 20, 14), 0)
    scale, shift = random((14,), 1), random((14,), 2)
    expected = scale * x + shift
    for sample, of_sample in zip(expected, stripes, strict=True):
        for axis, start, stop in of_sample:
            for p in range(start, stop):
                if axis == 0 and 0 <= p < 20:
                    sample[:, p] = 0
                if axis == 1 and 0 <= p < 14:
                    sample[:, :, p] = 0
    loaded = reference.load(x, scale, shift, torch.tensor(stripes, dtype=torch.int32))
    assert torch.equal(loaded, expected)
