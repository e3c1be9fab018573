"""Runs what the later sections time, under FASTSEP_TUNE=1: the kernels choose and keep their
configurations meanwhile, see `fastsep.triton.tuning`."""

from collections.abc import Callable
from functools import partial

from benchmarks.gpu.layers import FASTSEP
from benchmarks.gpu.network import BF16_PRODUCTS, evaluation, inference, training
from benchmarks.gpu.results import Case, Row
from benchmarks.gpu.timing import BATCHES, PRECISIONS, Prepared, settings


def cases() -> list[Case]:
    def case(kind: str, prepare: Callable[..., Prepared], batch: int, p: str, s: str) -> Case:
        return Case(f"{kind}, batch {batch}, {p}: {s}", partial(once, prepare, batch, p, s))

    cases = []
    for batch in BATCHES:
        for precision in PRECISIONS:
            cases.append(case("network", inference, batch, precision, FASTSEP))
            cases.append(case("training step", training, batch, precision, FASTSEP))
        cases.append(case("network", inference, batch, "bf16", BF16_PRODUCTS))
    return cases + [case("evaluation", evaluation, 1, p, FASTSEP) for p in PRECISIONS]


def once(prepare: Callable[..., Prepared], batch: int, precision: str, system: str) -> Row:
    with settings(precision):
        prepared = prepare(batch, precision, system)
        prepared.call(*prepared.inputs[0])
    return {}
