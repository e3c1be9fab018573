"""Memory formats, new maps, and the dtype of sums."""

import pytest
import torch
from torch import Tensor

from fastsep.layouts import accumulator, in_format_of, memory_format, new_map

CHANNELS_LAST = torch.ones(2, 4, 5, 3).permute(0, 3, 1, 2)
FORMATS = {
    "contiguous": (torch.ones(2, 3, 4, 5), torch.contiguous_format),
    "channels_last": (CHANNELS_LAST, torch.channels_last),
    "both, one channel": (torch.ones(2, 1, 4, 5), torch.contiguous_format),
    "neither": (torch.ones(2, 6, 4, 5)[:, ::2], torch.contiguous_format),
}


@pytest.mark.parametrize(("x", "expected"), FORMATS.values(), ids=FORMATS)
def test_memory_format(x: Tensor, expected: torch.memory_format) -> None:
    assert memory_format(x) == expected
    y = new_map(x, (2, 7, 3, 3))
    assert y.shape == (2, 7, 3, 3)
    assert y.is_contiguous(memory_format=expected)


@pytest.mark.parametrize(("x", "expected"), FORMATS.values(), ids=FORMATS)
def test_in_format_of(x: Tensor, expected: torch.memory_format) -> None:
    for y in (torch.arange(120.0).view(2, 5, 4, 3), torch.arange(120.0).view(2, 4, 3, 5).mT):
        got = in_format_of(x, y)
        assert torch.equal(got, y)
        assert got.is_contiguous(memory_format=expected)


def test_new_map_is_of_the_dtype_asked_for() -> None:
    x = torch.ones(1, 2, 3, 4, dtype=torch.float64, device="meta")
    assert new_map(x, (1, 2, 3, 4)).dtype == torch.float64
    assert new_map(x, (1, 2, 3, 4), torch.int8).dtype == torch.int8
    assert new_map(x, (1, 2, 3, 4)).device.type == "meta"


def test_sums_of_16_bits_are_kept_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert accumulator(dtype) == torch.float32
    assert accumulator(torch.float64) == torch.float64
