"""A figure goes with its error, and a wrong result gives none."""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pytest_benchmark")

from benchmarks import measure as measuring
from benchmarks.measure import measure, relative_error


class Benchmark:
    """What `measure` asks of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.rounds = 0

    def pedantic(self, run: Any, rounds: int, warmup_rounds: int) -> None:
        assert torch.is_inference_mode_enabled()
        self.rounds = rounds
        run()


def test_errors_are_relative_to_the_largest_value() -> None:
    exact = torch.tensor([[1.0, -4.0]], dtype=torch.float64)
    longer = torch.tensor([[1.0, -4.5], [9.0, 9.0]])  # of which only the first row is known
    assert relative_error(longer, exact) == 0.125
    assert relative_error([longer.numpy()], exact) == 0.125
    assert relative_error({0: np.array([[1.0, -4.0]])}, exact) == 0
    assert relative_error(torch.tensor([[1.0, torch.nan]]), exact) == float("inf")


def test_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100.0, 120.0])
    monkeypatch.setattr(measuring, "fma_peak", lambda isa, threads: next(peaks))
    benchmark: Any = Benchmark()
    measure(benchmark, lambda: torch.tensor([1.0, 2.0]), exact=torch.tensor([1.0, 2.0]).double(),
            flop=8.0, isa="avx2", threads=2, system="peer")  # fmt: skip
    assert benchmark.rounds > 20  # a second's worth
    assert benchmark.extra_info == {"system": "peer", "flop": 8, "isa": "avx2", "threads": 2,
                                    "peak_gflops": 120.0, "relative_error": 0.0}  # fmt: skip


@pytest.mark.parametrize("wrong", [2.1, float("nan")])
def test_a_peer_that_computes_something_else_is_no_peer(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "fma_peak", lambda isa, threads: 100.0)
    benchmark: Any = Benchmark()
    with pytest.raises(AssertionError, match="of the largest value"):
        measure(benchmark, lambda: torch.tensor([1.0, wrong]), exact=torch.tensor([1.0, 2.0]),
                flop=8.0, isa="avx2", threads=2)  # fmt: skip
    assert benchmark.rounds == 0
