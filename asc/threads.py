"""A function of many items, by all cores."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[Iterator[R]]:
    """Results of a function for every item, in order, computed by a thread a core.

    Meant for what spends its time outside Python, such as decoding and transforms. In each thread
    PyTorch has one thread of its own. When the block ends, whatever ends it, no further item is
    begun.
    """
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(cores, "asc", torch.set_num_threads, (1,))
    try:
        yield pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # a part of it is the whole process's
