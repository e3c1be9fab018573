import os
import threading

import pytest
import torch

from asc.threads import in_threads, thread_pool


def test_results_come_in_order_from_a_thread_a_core() -> None:
    cores = len(os.sched_getaffinity(0))
    together = threading.Barrier(cores)  # which fewer threads never pass

    def function(item: int) -> tuple[int, int]:
        together.wait(60)
        return item * item, torch.get_num_threads()

    before = torch.get_num_threads()
    with in_threads(function, range(4 * cores)) as results:
        assert list(results) == [(i * i, 1) for i in range(4 * cores)]
    assert torch.get_num_threads() == before


def test_meanwhile_the_caller_has_all_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with thread_pool() as pool:
            assert torch.get_num_threads() == 3
            seen = [pool.submit(torch.get_num_threads).result() for _ in range(20)]
            assert seen == [1] * 20
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("where", ["function", "block"])
def test_after_an_error_nothing_more_is_begun(where: str) -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def function(item: int) -> None:
        begun.append(item)
        if where == "function":
            raise KeyError(item)
        if item > 0:
            go_on.wait(0.05)

    with pytest.raises(KeyError), in_threads(function, range(10_000)) as results:
        next(results)
        raise KeyError
    assert len(begun) < 10_000
