"""Shared by the suites: threads and instruction set are put back after every case."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), torch.ops.fastsep_cpu.isa()
    yield
    torch.set_num_threads(threads)
    torch.ops.fastsep_cpu.set_isa(isa)
