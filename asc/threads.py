"""Work by all cores, in threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """A thread a core, in each of which PyTorch has one thread of its own.

    Meant for what spends its time outside Python, such as decoding and transforms. The threads that
    PyTorch has elsewhere stay as they are. When the block ends, whatever ends it, nothing further
    is begun.
    """
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    started = Barrier(cores + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # else a thread takes over at first use what is set by then
        started.wait()

    pool = ThreadPoolExecutor(cores, "asc", begin)
    try:
        for _ in range(cores):  # each starts a thread, as those before it wait
            pool.submit(int)
        started.wait()
        torch.set_num_threads(before)  # a part of it is the whole process's
        yield pool
    finally:
        started.abort()
        pool.shutdown(cancel_futures=True)


@contextmanager
def in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[Iterator[R]]:
    """Results of a function for every item, in order, computed by a `thread_pool`."""
    with thread_pool() as pool:
        yield pool.map(function, items)
