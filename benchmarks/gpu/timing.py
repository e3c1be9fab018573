"""How a figure is measured: torch's switches, inputs the cache has forgotten, CUDA events."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.results import Case, Row

# float32 in IEEE arithmetic, float32 with TF32 products, bfloat16.
PRECISIONS = ("IEEE", "TF32", "bf16")
DTYPES = {"IEEE": torch.float32, "TF32": torch.float32, "bf16": torch.bfloat16}
BATCHES = (256, 32, 1)  # the decisive one first
TOLERANCE = {"IEEE": 1e-3, "TF32": 2e-2, "bf16": 1e-1}  # of the largest value: the same function?
Inputs = Sequence[tuple[Any, ...]]


class Prepared(NamedTuple):
    """call(*inputs[i]) does the work `repeats` times; expected: exact results of inputs[0]."""

    call: Callable[..., object]
    inputs: Inputs
    repeats: int = 1
    expected: Sequence[Tensor] | None = None


@contextmanager
def settings(precision: str) -> Iterator[None]:
    """TF32 products or not, for matrix products and cuDNN; cuDNN may search its algorithms."""
    cudnn = torch.backends.cudnn
    # Not matmul.allow_tf32: after it, asking for the precision can raise.
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    try:
        torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
        cudnn.allow_tf32, cudnn.benchmark = precision == "TF32", True
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]


def timed(
    subject: str,
    batch: int,
    precision: str,
    system: str,
    prepare: Callable[[], Prepared],
    *,
    flop: float,
    nbytes: float,
    rank: int = 0,
) -> Case:
    """A case that checks and times what prepare() gives, in milliseconds a batch.

    flop and nbytes: what a batch needs at least, see `benchmarks.gpu.report`.
    """

    def run() -> Row:
        with settings(precision):
            prepared = prepare()
            error, peak = first_call(prepared, TOLERANCE[precision])
            ms, rounds = median_ms(prepared.call, prepared.inputs)
        return {"subject": subject, "batch": batch, "precision": precision, "system": system,
                "flop": int(flop), "bytes": int(nbytes), "ms": ms / prepared.repeats,
                "rounds": rounds, "relative_error": error, "peak_bytes": peak}  # fmt: skip

    name = f"{subject}, batch {batch}, {precision}: {system}"
    return Case(name, run, peer=not system.startswith("fastsep"), rank=rank)


def first_call(prepared: Prepared, tolerance: float) -> tuple[float | None, int]:
    """Its error, None where nothing is known, and the memory it takes beyond its inputs; raises
    when its results are wrong."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = prepared.call(*prepared.inputs[0])
    peak = torch.cuda.max_memory_allocated() - before
    if prepared.expected is None:
        return None, peak
    return assert_same(as_tensors(results), prepared.expected, tolerance), peak


def as_tensors(results: object) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)  # type: ignore[call-overload]


def assert_same(results: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> float:
    """The largest error relative to its result's largest value; raises when that is too large.
    There may be more results, and longer ones, than expected."""
    errors = [0.0]
    for i, (got, wanted) in enumerate(zip(results, expected, strict=False)):
        error = (got[: len(wanted)].double() - wanted.to(got.device)).abs().max().item()
        size = wanted.abs().max().item()
        if not error <= tolerance * size:
            raise AssertionError(f"result {i} is off by {error:.3g}, its largest value is {size}")
        errors.append(error / size)
    return max(errors)


def rotated(make: Callable[[], tuple[Tensor, ...]], l2_bytes: int | None = None) -> Inputs:
    """So many inputs that the first has left the L2 cache twice over when its turn comes again."""
    first = make()
    l2 = torch.cuda.get_device_properties().L2_cache_size if l2_bytes is None else l2_bytes
    copies = math.ceil(2 * l2 / sum(t.nbytes for t in first))
    return [first, *(make() for _ in range(copies - 1))]


def median_ms(
    call: Callable[..., object], inputs: Inputs, seconds: float = 0.2
) -> tuple[float, int]:
    """Median time of a call between CUDA events, the inputs taking turns, and of how many."""
    turn = cycle(inputs)

    def times(rounds: int) -> list[float]:
        pairs = []
        for _ in range(rounds):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call(*next(turn))
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) for start, stop in pairs]

    estimate = times(2)[1]
    rounds = min(200, max(3, int(1e3 * seconds / estimate)))
    times(rounds // 4)
    return median(times(rounds)), rounds


def graphed(call: Callable[..., object], inputs: Inputs) -> Prepared:
    """One CUDA graph of the calls on all inputs: what is left when launching costs nothing."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(*inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in inputs:
            call(*arguments)
    return Prepared(graph.replay, [()], repeats=len(inputs))
