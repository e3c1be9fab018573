"""The operator forward + backward and the folded block, one layer of the network at a time."""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from benchmarks import workloads
from benchmarks.gpu.results import Case
from benchmarks.gpu.timing import BATCHES, DTYPES, PRECISIONS, Prepared, rotated, timed
from benchmarks.workloads import LAYERS, Layer
from fastsep import BlockParameters
from fastsep.eager import to_eager

FASTSEP, NCHW, CHANNELS_LAST = "fastsep", "eager, NCHW", "eager, channels_last"
COMPILED = "torch.compile, max-autotune"
SYSTEMS = (FASTSEP, NCHW, CHANNELS_LAST, COMPILED)


def operator_cases() -> list[Case]:
    return _cases("operator", operator)


def block_cases() -> list[Case]:
    return _cases("block", folded_block)


def _cases(kind: str, prepare: Callable[[Layer, int, str, str], Prepared]) -> list[Case]:
    cases = []
    for batch in BATCHES:
        for name, layer in LAYERS.items():
            for precision in PRECISIONS:
                for system in SYSTEMS:
                    if system == COMPILED and batch != BATCHES[0]:
                        continue  # a compilation costs half a minute
                    cases.append(
                        timed(f"{kind}, {name}", batch, precision, system,
                              partial(prepare, layer, batch, precision, system),
                              flop=batch * clip_flop(kind, layer),
                              nbytes=batch * clip_bytes(kind, layer, DTYPES[precision].itemsize),
                              rank=rank(system, batch))
                    )  # fmt: skip
    return cases


def rank(system: str, batch: int) -> int:
    """What tells most first; cuDNN may search a minute for its best way through channels_last."""
    return {COMPILED: 3, CHANNELS_LAST: 4}.get(system, 0 if batch == BATCHES[0] else 2)


def clip_flop(kind: str, layer: Layer) -> float:
    """The backward of the operator is two more passes: gradients of inputs and of weights."""
    forward = workloads.block_flop(1, layer)
    return 3 * forward if kind == "operator" else forward


def clip_bytes(kind: str, layer: Layer, itemsize: int) -> float:
    """Every map once: x and y; and for the operator's backward x, y's gradient and x's again."""
    cin, cout, frames, bins = layer
    if kind == "operator":
        return itemsize * frames * bins * (3 * cin + 2 * cout)
    return itemsize * (cin * frames * bins + cout * (frames // 2) * (bins // 2))


def _weights(layer: Layer, dtype: torch.dtype) -> BlockParameters:
    block = workloads.block(layer.cin, layer.cout)
    p, a, b, bias = (w.to("cuda", dtype) for w in block[:4])
    return BlockParameters(p, a, b, bias, block.dilation, block.pool)


def _layer(block: BlockParameters, system: str, *, pooled: bool) -> nn.Module:
    ours = workloads.layer_of(block, pooled=pooled)
    if system == FASTSEP:
        return ours
    if system == COMPILED:
        return torch.compile(to_eager(ours), fullgraph=True, dynamic=False, mode="max-autotune")  # type: ignore[return-value]
    return to_eager(ours)


def _map(n: int, c: int, frames: int, bins: int, precision: str, system: str) -> Tensor:
    x = torch.randn(n, c, frames, bins, device="cuda").to(DTYPES[precision])
    if system != CHANNELS_LAST:
        return x
    # The clone sets the strides, which of one channel would otherwise stay those of NCHW.
    x = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return x.permute(0, 3, 1, 2)


def operator(layer: Layer, batch: int, precision: str, system: str) -> Prepared:
    """call(x, grad): gradients of x and of the weights, the forward run included."""
    cin, cout, frames, bins = layer

    def make() -> tuple[Tensor, Tensor]:
        x = _map(batch, cin, frames, bins, precision, system).requires_grad_()
        return x, _map(batch, cout, frames, bins, precision, system)

    module = _layer(_weights(layer, DTYPES[precision]), system, pooled=False)
    weights = list(module.parameters())

    def call(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x), (x, *weights), grad)

    torch.manual_seed(0)
    inputs = rotated(make)
    expected = _expected_gradients(layer, batch)
    # Of others x's gradient will do: those of their taps lose digits where maps are bfloat16.
    return Prepared(call, inputs, expected=expected if system == FASTSEP else expected[:1])


def folded_block(layer: Layer, batch: int, precision: str, system: str) -> Prepared:
    module = _layer(_weights(layer, DTYPES[precision]), system, pooled=True)

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return module(x)

    def make() -> tuple[Tensor]:
        return (_map(batch, *layer[:1], *layer[2:], precision, system),)

    torch.manual_seed(0)
    inputs = rotated(make)
    return Prepared(call, inputs, expected=_expected_block(layer, batch))


# What every system must find, in float64; of maps only the first clip is kept.


@lru_cache(maxsize=1)
def _expected_gradients(layer: Layer, batch: int) -> list[Tensor]:
    torch.manual_seed(0)
    x = _map(batch, layer.cin, layer.frames, layer.bins, "IEEE", NCHW)
    grad = _map(batch, layer.cout, layer.frames, layer.bins, "IEEE", NCHW)
    return workloads.exact_gradients(x, grad, _weights(layer, torch.float32))


@lru_cache(maxsize=1)
def _expected_block(layer: Layer, batch: int) -> list[Tensor]:
    torch.manual_seed(0)
    x = _map(batch, layer.cin, layer.frames, layer.bins, "IEEE", NCHW)
    return [workloads.exact_block(x, _weights(layer, torch.float32))]
