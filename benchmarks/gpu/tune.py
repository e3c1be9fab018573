"""Runs what the later sections time, under FASTSEP_TUNE=1: the kernels choose and keep their
configurations meanwhile, see `fastsep.triton.tuning`. `compile_cases` are the same kernels at batch
1, in processes side by side whose choices are thrown away: they leave the kernels compiled."""

from collections.abc import Callable
from functools import partial

from benchmarks.gpu.layers import FASTSEP, folded_block, operator
from benchmarks.gpu.network import BF16_PRODUCTS, evaluation, inference, training
from benchmarks.gpu.results import Case, Row
from benchmarks.gpu.timing import BATCHES, PRECISIONS, Prepared, settings
from benchmarks.workloads import LAYERS


def compile_cases() -> list[Case]:
    layers = [
        Case(f"{kind}, {name}, {p}", partial(once, partial(prepare, layer), 1, p, FASTSEP))
        for kind, prepare in (("operator", operator), ("block", folded_block))
        for name, layer in LAYERS.items()
        for p in PRECISIONS
    ]
    return layers + network_cases(1)


def cases() -> list[Case]:
    evaluations = [_case("evaluation", evaluation, 1, p, FASTSEP) for p in PRECISIONS]
    return [case for batch in BATCHES for case in network_cases(batch)] + evaluations


def network_cases(batch: int) -> list[Case]:
    cases = []
    for precision in PRECISIONS:
        cases.append(_case("network", inference, batch, precision, FASTSEP))
        cases.append(_case("training step", training, batch, precision, FASTSEP))
    return [*cases, _case("network", inference, batch, "bf16", BF16_PRODUCTS)]


def _case(kind: str, prepare: Callable[..., Prepared], batch: int, p: str, s: str) -> Case:
    return Case(f"{kind}, batch {batch}, {p}: {s}", partial(once, prepare, batch, p, s))


def once(prepare: Callable[..., Prepared], batch: int, precision: str, system: str) -> Row:
    with settings(precision):
        prepared = prepare(batch, precision, system)
        prepared.call(*prepared.inputs[0])
    return {}
