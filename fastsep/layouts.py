"""What everything stands on: how maps lie in memory, and the dtype that sums are kept in."""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if x (N, C, T, F) is that and not contiguous as well; otherwise contiguous."""
    try:
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # inside vmap, which answers for the contiguous format alone
        channels_last = False
    return torch.channels_last if channels_last else torch.contiguous_format


def new_map(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised map in x's memory format: channels_last stays channels_last.

    Args:
        x: (N, C, T, F), whose device it gets.
        shape: of the new map, four sizes.
        dtype: x's if None.
    """
    return torch.empty(
        shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format(x)
    )


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """y in x's memory format, which is lost where a map between them had just one channel."""
    return y.contiguous(memory_format=memory_format(x))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums of products of `dtype` are kept in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
