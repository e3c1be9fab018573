"""The operator forward + backward and the folded block, one layer of the network at a time."""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

import fastsep
from benchmarks import workloads
from benchmarks.gpu.results import Case
from benchmarks.gpu.timing import BATCHES, DTYPES, PRECISIONS, Prepared, rotated, settings, timed
from benchmarks.workloads import LAYERS, Layer

FASTSEP, NCHW, CHANNELS_LAST = "fastsep", "eager, NCHW", "eager, channels_last"
COMPILED = "torch.compile, max-autotune"
SYSTEMS = (FASTSEP, NCHW, CHANNELS_LAST, COMPILED)


Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def operator_cases() -> list[Case]:
    return _cases("operator", _operator)


def block_cases() -> list[Case]:
    return _cases("block", _block)


def _cases(kind: str, prepare: Callable[[Layer, int, str, str], Prepared]) -> list[Case]:
    cases = []
    for batch in BATCHES:
        for name, layer in LAYERS.items():
            for precision in PRECISIONS:
                for system in SYSTEMS:
                    compiled = system == COMPILED
                    if compiled and batch != BATCHES[0]:
                        continue  # a compilation costs half a minute
                    cases.append(
                        timed(f"{kind}, {name}", batch, precision, system,
                              partial(prepare, layer, batch, precision, system),
                              flop=batch * clip_flop(kind, layer),
                              nbytes=batch * clip_bytes(kind, layer, DTYPES[precision].itemsize),
                              rank=3 if compiled else 0 if batch == BATCHES[0] else 2)
                    )  # fmt: skip
    return cases


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


def eager_operator(
    x: Tensor, pointwise: Tensor, time_taps: Tensor, freq_taps: Tensor, bias: Tensor | None = None
) -> Tensor:
    c = len(pointwise)
    z = conv2d(x, pointwise[:, :, None, None])
    y = conv2d(z, time_taps[:, None, :, None], bias, padding=(2, 0), dilation=2, groups=c)
    return y + conv2d(z, freq_taps[:, None, None, :], padding=(0, 2), dilation=2, groups=c)


def eager_block(x: Tensor, *weights: Tensor) -> Tensor:
    return avg_pool2d(torch.relu(eager_operator(x, *weights)), 2)


def _weights(layer: Layer, dtype: torch.dtype) -> Weights:
    weights = workloads.block(layer.cin, layer.cout)[:4]
    p, a, b, bias = (w.to("cuda", dtype) for w in weights)
    return p, a, b, bias


def _function(
    system: str, ours: Callable[..., Tensor], eager: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    if system == FASTSEP:
        return ours
    if system == COMPILED:
        return torch.compile(eager, fullgraph=True, dynamic=False, mode="max-autotune")
    return eager


def _map(n: int, c: int, frames: int, bins: int, precision: str, system: str) -> Tensor:
    x = torch.randn(n, c, frames, bins, device="cuda").to(DTYPES[precision])
    if system != CHANNELS_LAST:
        return x
    # The clone sets the strides, which of one channel would otherwise stay those of NCHW.
    x = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return x.permute(0, 3, 1, 2)


def _operator(layer: Layer, batch: int, precision: str, system: str) -> Prepared:
    """call(x, grad): gradients of x and of the weights, the forward run included."""
    cin, cout, frames, bins = layer

    def make() -> tuple[Tensor, Tensor]:
        x = _map(batch, cin, frames, bins, precision, system).requires_grad_()
        return x, _map(batch, cout, frames, bins, precision, system)

    weights = [w.requires_grad_() for w in _weights(layer, DTYPES[precision])[:3]]
    function = _function(system, fastsep.sep_conv2d, eager_operator)

    def call(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, *weights), (x, *weights), grad)

    torch.manual_seed(0)
    inputs = rotated(make)
    expected = _expected_gradients(layer, batch)
    # Of others x's gradient will do: those of their taps lose digits where maps are bfloat16.
    return Prepared(call, inputs, expected=expected if system == FASTSEP else expected[:1])


def _block(layer: Layer, batch: int, precision: str, system: str) -> Prepared:
    weights = _weights(layer, DTYPES[precision])
    function = _function(system, fastsep.sep_conv2d_block, eager_block)

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x, *weights)

    def make() -> tuple[Tensor]:
        return (_map(batch, *layer[:1], *layer[2:], precision, system),)

    torch.manual_seed(0)
    inputs = rotated(make)
    return Prepared(call, inputs, expected=_expected_block(layer, batch))


# What every system must find: IEEE float32 by eager PyTorch; of maps only the first clip is kept.


@lru_cache(maxsize=1)
def _expected_gradients(layer: Layer, batch: int) -> list[Tensor]:
    torch.manual_seed(0)
    x = _map(batch, layer.cin, layer.frames, layer.bins, "IEEE", NCHW).requires_grad_()
    grad = _map(batch, layer.cout, layer.frames, layer.bins, "IEEE", NCHW)
    weights = [w.requires_grad_() for w in _weights(layer, torch.float32)[:3]]
    with settings("IEEE"):
        dx, *rest = torch.autograd.grad(eager_operator(x, *weights), (x, *weights), grad)
    return [dx[:1].clone(), *rest]


@lru_cache(maxsize=1)
def _expected_block(layer: Layer, batch: int) -> list[Tensor]:
    torch.manual_seed(0)
    x = _map(batch, layer.cin, layer.frames, layer.bins, "IEEE", NCHW)
    with settings("IEEE"), torch.no_grad():
        return [eager_block(x[:1], *_weights(layer, torch.float32))]
