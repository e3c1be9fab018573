"""What is measured: the network and its layers, with random weights, and their float64 results."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

import fastsep
from asc.model import WIDTHS, Cnn6Sep
from asc.task import FRAMES, N_MELS
from fastsep import BlockParameters, SepConv2d, SepConvBlock, reference
from fastsep.eager import to_eager

T = TypeVar("T")


class Layer(NamedTuple):
    """A block by its channels and its input map."""

    cin: int
    cout: int
    frames: int
    bins: int


def _layers() -> Iterator[tuple[str, Layer]]:
    cin, frames, bins = 1, FRAMES, N_MELS
    for i, cout in enumerate(WIDTHS, 1):
        yield f"block {i}", Layer(cin, cout, frames, bins)
        cin, frames, bins = cout, frames // 2, bins // 2


LAYERS = dict(_layers())  # the network's: (1, 64, 431, 256), (64, 128, 215, 128), ...


def network() -> Cnn6Sep:
    """A folded Cnn6Sep whose maps have the spread that training gives them."""
    torch.manual_seed(0)
    model = Cnn6Sep()
    with torch.no_grad():
        for _ in range(3):  # running statistics, so that no map vanishes or explodes
            model.train()(torch.randn(2, 1, FRAMES, N_MELS))
    return model.eval().folded()


def clips(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, FRAMES, N_MELS, generator=generator)


def block(cin: int, cout: int, dilation: int = 2) -> BlockParameters:
    generator = torch.Generator().manual_seed(2)
    pointwise = torch.randn(cout, cin, generator=generator) / cin**0.5
    time_taps, freq_taps = torch.randn(2, cout, 3, generator=generator)
    return BlockParameters(
        pointwise, time_taps, freq_taps, torch.randn(cout, generator=generator), dilation
    )


def learner() -> tuple[Cnn6Sep, Tensor, Tensor]:
    """A network to be trained; clips of ten kinds, 32 of them, and their labels."""
    torch.manual_seed(0)
    model = Cnn6Sep(dropout=0).train()
    labels = torch.arange(32) % 10
    loudness = 1 + labels.view(-1, 1, 1, 1) / 10
    return model, loudness * clips(32), labels


def layer_of(block: BlockParameters, *, pooled: bool = True) -> SepConvBlock | SepConv2d:
    """A block as a layer; not pooled: the bare operator, without its bias."""
    cout, cin = block.pointwise.shape
    conv = SepConv2d(cin, cout, dilation=block.dilation, bias=pooled).to(block.pointwise)
    conv.load_state_dict({name: getattr(block, name) for name in conv.state_dict()})
    if not pooled:
        return conv
    layer = SepConvBlock(cin, cout, dilation=block.dilation, pool=block.pool).eval()
    layer.conv, layer.bn = conv, None
    return layer


def maps(batch: int, layer: Layer) -> Tensor:
    """Inputs of a layer."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, layer.cin, layer.frames, layer.bins, generator=generator)


def block_flop(n: int, layer: Layer) -> float:
    """Multiply and add count 2; the centre taps are merged; one input channel needs no product."""
    cin, cout, frames, bins = layer
    per_output = 5 if cin == 1 else cin + 5
    return 2.0 * n * cout * per_output * frames * bins


def network_flop(batch: int) -> float:
    return sum(block_flop(batch, layer) for layer in LAYERS.values())


# What is right: the reference in float64. Clip by clip, or its maps would take gigabytes.


@cache
def exact_logits(batch: int) -> Tensor:
    model = network().double()
    with torch.no_grad(), fastsep.use_backend("reference"):
        return torch.cat([model(x) for x in clips(batch).double().split(1)])


@cache
def exact_step(batch: int) -> Tensor:
    """`step_result` of the learner's first step, by PyTorch's own layers. In a process of its own,
    which gives back what maps in float64 take: 12 GB at batch 32."""
    return in_fresh_process(_exact_step, batch)


def _exact_step(batch: int) -> Tensor:
    model, x, labels = learner()
    eager = to_eager(model).double()
    loss = nn.functional.cross_entropy(eager(x[:batch].double()), labels[:batch])
    loss.backward()
    return step_result(loss, eager)


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T:
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def step_result(loss: Tensor, model: nn.Module) -> Tensor:
    """What is compared of a step: the loss, and the gradient that has passed all the layers."""
    gradient = next(model.parameters()).grad
    assert gradient is not None
    return torch.cat([loss.detach().reshape(1), gradient.flatten()])


def exact_block(x: Tensor, block: BlockParameters, *, pooled: bool = True) -> Tensor:
    """Of the first of the maps x; not pooled: the bare operator, without its bias."""
    x = x[:1].double()
    p, a, b, bias = (w.double() for w in block[:4])
    if pooled:
        return reference.sep_conv2d_block(x, p, a, b, bias, block.dilation, block.pool)
    return reference.sep_conv2d(x, p, a, b, None, block.dilation)


def exact_gradients(x: Tensor, grad: Tensor, block: BlockParameters) -> list[Tensor]:
    """Of the bare operator without bias: of the first of the maps x, and of the three weights.

    A few clips at a time, since their maps in float64 fill a GPU; gradients of weights add up.
    """
    weights = [w.double().requires_grad_() for w in block[:3]]
    sums, first = [torch.zeros_like(w) for w in weights], None
    for part, upstream in zip(x.detach().split(8), grad.split(8), strict=True):
        leaf = part.double().requires_grad_()
        y = reference.sep_conv2d(leaf, weights[0], weights[1], weights[2], None, block.dilation)
        dx, *rest = torch.autograd.grad(y, (leaf, *weights), upstream.double())
        first = dx[:1].clone() if first is None else first
        sums = [total + more for total, more in zip(sums, rest, strict=True)]
    assert first is not None
    return [first, *sums]
