"""What counts as a separable block, and what comes close but does not."""

import copy
import functools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import EXACT, Model, SepConv, assert_same, eval_and_train, random, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fastsep import fuse, unfuse
from fastsep.fusion import FusedSepConv

# What counts as a block.


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        original = SepConv()
        self.mix, self.vertical, self.horizontal = (
            original.ch_conv1,
            original.sp_conv1,
            original.sp_conv2,
        )
        self.norm = original.bn

    def forward(self, inputs: Tensor) -> Tensor:
        mixed = self.mix(inputs)
        summed = torch.add(self.horizontal(mixed), self.vertical(mixed))
        return F.avg_pool2d(F.relu(self.norm(summed), inplace=True), kernel_size=2, stride=2)


class Swapped(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        z = self.ch_conv1(x)
        return self.sp_conv2(z) + self.sp_conv1(z)


class ComputedTwice(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        return self.sp_conv1(self.ch_conv1(x)) + self.sp_conv2(self.ch_conv1(x))


class InPlaceSum(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        z = self.ch_conv1(x)
        y = self.sp_conv1(z)
        y += self.sp_conv2(z)
        return y


class MethodCalls(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        z = self.ch_conv1(x)
        y = self.bn(self.sp_conv1(z).add(self.sp_conv2(z))).relu()
        return F.avg_pool2d(y, (2, 2), (2, 2), 0, False)


class NoPool(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.cross(x)))


class Bare(SepConv):
    def __init__(self, cin: int = 3, cout: int = 6, dilation: int = 2) -> None:
        super().__init__(cin, cout, dilation)
        del self.bn, self.relu, self.pool

    def forward(self, x: Tensor) -> Tensor:
        return self.cross(x)


class Nested(nn.Module):
    """Layers inside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"conv": Bare(), "tail": nn.Sequential(nn.BatchNorm2d(6))})
        self.act = nn.Sequential(nn.ReLU(inplace=True), nn.Identity(), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner["tail"](self.inner["conv"](x)))


def with_padding_same() -> nn.Module:
    block = SepConv()
    block.sp_conv1.padding = block.sp_conv2.padding = "same"
    return block


def with_weight_norm() -> nn.Module:
    block = SepConv()
    for conv in (block.ch_conv1, block.sp_conv1, block.sp_conv2):
        parametrizations.weight_norm(conv)
    return block


def with_batch_norm(**options: Any) -> nn.Module:
    block = SepConv()
    block.bn = nn.BatchNorm2d(6, **options)
    return block


def sequential() -> nn.Module:
    parts = {"conv": Bare(), "bn": nn.BatchNorm2d(6), "act": nn.ReLU(), "pool": nn.AvgPool2d(2)}
    return nn.Sequential(OrderedDict(parts))


BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "upstream": (SepConv, "separable block 3 -> 6, dilation 2, pool 2"),
    "dilation 1": (lambda: SepConv(dilation=1), "separable block 3 -> 6, dilation 1, pool 2"),
    "dilation 3": (lambda: SepConv(dilation=3), "separable block 3 -> 6, dilation 3, pool 2"),
    "one input channel": (lambda: Bare(3, 1), "separable convolution 3 -> 1, dilation 2"),
    "pool 3": (lambda: SepConv(pool=3), "separable block 3 -> 6, dilation 2, pool 3"),
    "renamed, functional": (Renamed, "separable block 3 -> 6, dilation 2, pool 2"),
    "swapped sum": (Swapped, "separable block 3 -> 6, dilation 2, pool 2"),
    "z computed twice": (ComputedTwice, "separable block 3 -> 6, dilation 2, pool 2"),
    "in-place sum": (InPlaceSum, "separable block 3 -> 6, dilation 2, pool 2"),
    "method calls": (MethodCalls, "separable block 3 -> 6, dilation 2, pool 2"),
    "no pool": (NoPool, "separable block 3 -> 6, dilation 2, pool 1"),
    "bare operator": (Bare, "separable convolution 3 -> 6, dilation 2"),
    "nested": (Nested, "separable block 3 -> 6, dilation 2, pool 2"),
    "sequential": (sequential, "separable block 3 -> 6, dilation 2, pool 2"),
    "padding same": (with_padding_same, "separable block 3 -> 6, dilation 2, pool 2"),
    "weight norm": (with_weight_norm, "separable block 3 -> 6, dilation 2, pool 2"),
    "batch norm without affine": (lambda: with_batch_norm(affine=False), "separable block"),
    "batch norm of the batch": (
        lambda: with_batch_norm(track_running_stats=False),
        "separable block",
    ),
    "folded": (lambda: folded_by_hand(), "separable block 3 -> 6, dilation 2, pool 2"),
    "folded, one bias": (lambda: folded_by_hand(("sp_conv1",)), "separable block 3 -> 6"),
    "folded, no batch norm": (lambda: FoldedWithoutNorm(), "separable block 3 -> 6"),
    "bare operator with a bias": (lambda: bare_with_bias(), "separable convolution 3 -> 6"),
    "batch norm with options": (
        lambda: with_batch_norm(eps=0.1, momentum=None),
        "separable block",
    ),
}


@pytest.mark.parametrize(("make", "description"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_replaced(backend: str, make: Callable[[], nn.Module], description: str) -> None:
    torch.manual_seed(0)
    model = trained(Model(make()))
    twin, x = copy.deepcopy(model), random(2, 2, 11, 13)
    names = list(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    original = model.block
    report = fuse(model)
    assert list(report.replaced) == ["block"], report
    assert description in report.replaced["block"]
    assert not report.left_alone
    assert "fused" in str(report) and "block" in str(report)
    assert isinstance(model.block, FusedSepConv) and model.block is original
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == parameters
    assert_same(eval_and_train(model, x), eval_and_train(twin, x))
    assert model.block.is_as_recognised()

    unfuse(model)
    assert model.block is original
    assert list(model.state_dict()) == names
    assert_same(eval_and_train(model, x), eval_and_train(twin, x))


def test_gradient_reaches_the_input_of_a_fused_block(backend: str) -> None:
    block = trained(SepConv())
    model = nn.ModuleList([copy.deepcopy(block)])
    fuse(model)
    for mode in (True, False):
        gradients = []
        for module in (block.train(mode), model.train(mode)[0]):
            x = random(2, 3, 9, 9).requires_grad_()
            module(x).square().sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients, **EXACT)


# What does not.


def with_bias(which: str) -> SepConv:
    block = SepConv()
    conv = getattr(block, which)
    conv.bias = nn.Parameter(torch.ones(conv.out_channels))
    return block


def with_conv(which: str, **options: Any) -> SepConv:
    block = SepConv()
    for name, value in options.items():
        setattr(getattr(block, which), name, value)
    return block


def with_layer(name: str, layer: nn.Module) -> SepConv:
    block = SepConv()
    setattr(block, name, layer)
    return block


class PoolArguments(SepConv):
    """Average pooling by a function call with these arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.cross(x)))
        return F.avg_pool2d(y, *self.args, **self.kwargs)


class GlobalPool(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.cross(x)))
        return F.avg_pool2d(y, y.shape[2:])


class NoBatchNorm(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.cross(x)))


class NoRelu(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.bn(self.cross(x)))


class PoolBeforeRelu(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.pool(self.bn(self.cross(x))))


class Difference(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        z = self.ch_conv1(x)
        return self.sp_conv1(z) - self.sp_conv2(z)


class WeightedSum(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        z = self.ch_conv1(x)
        return torch.add(self.sp_conv1(z), self.sp_conv2(z), alpha=2)


class OneAfterTheOther(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        return self.sp_conv2(self.sp_conv1(self.ch_conv1(x)))


class TwoPointwise(SepConv):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 6, 1, bias=False)

    def cross(self, x: Tensor) -> Tensor:
        return self.sp_conv1(self.ch_conv1(x)) + self.sp_conv2(self.other(x))


class Residual(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class NoiseInTraining(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = 2 * x
        return super().forward(x)


class OtherPoolInEval(SepConv):
    def __init__(self) -> None:
        super().__init__()
        self.eval_pool = nn.AvgPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.cross(x)))
        return self.pool(y) if self.training else self.eval_pool(y)


class DataDependent(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.sum() > 0 else x)


class Inline(SepConv):
    """A second block in the same forward."""

    def __init__(self) -> None:
        super().__init__()
        second = SepConv(6, 6)
        self.mix, self.down, self.across, self.norm = (
            second.ch_conv1,
            second.sp_conv1,
            second.sp_conv2,
            second.bn,
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.mix(super().forward(x))
        return self.pool(self.relu(self.norm(self.down(z) + self.across(z))))


class InPlaceOnInput(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)  # its result is not used, its effect is
        return super().forward(x)


class KeepsAnIntermediate(SepConv):
    """For a look at it later, as visualisations do."""

    last: Tensor | None = None

    def cross(self, x: Tensor) -> Tensor:
        self.last = super().cross(x)
        return self.last


class TwoInputs(SepConv):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


class TwoOutputs(SepConv):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class LinearOverBins(SepConv):
    """A parametrised layer that is not a convolution, where the 1x1 convolution would be."""

    def __init__(self) -> None:
        super().__init__()
        self.ch_conv1 = parametrizations.weight_norm(nn.Linear(13, 13, bias=False))
        self.sp_conv1 = nn.Conv2d(3, 3, (3, 1), padding=(1, 0), groups=3, bias=False)
        self.sp_conv2 = nn.Conv2d(3, 3, (1, 3), padding=(0, 1), groups=3, bias=False)
        self.bn = nn.BatchNorm2d(3)


def hooked(register: str) -> SepConv:
    block = SepConv()
    getattr(block.bn, register)(lambda *args: None)
    return block


def patched() -> SepConv:
    """As tools do that wrap forwards."""
    block = SepConv()
    forward = block.bn.forward
    block.bn.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]
    return block


class UnderNoGrad(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class UnderEnableGrad(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().cross(x)


class UnderInferenceMode(SepConv):
    def cross(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().cross(x).clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn(self.cross(x).clone())))


class UnderAutocast(SepConv):
    """Where bfloat16 is not enough, or where float64 is too much."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def cross(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            return super().cross(x)


def doubling(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def doubled(self: Any, x: Tensor) -> Tensor:
        return forward(self, x)  # and whatever else; this one counts calls somewhere

    return doubled


class Decorated(SepConv):
    @doubling
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DecoratedRelu(nn.ReLU):
    @doubling
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DecoratedMethod(SepConv):
    @torch.no_grad()
    def cross(self, x: Tensor) -> Tensor:
        return super().cross(x)


class CountsInBuffer(SepConv):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x)


class CountsInPlace(CountsInBuffer):
    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return SepConv.forward(self, x)


class CountsInTensor(SepConv):
    """That is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class CountsInAttribute(SepConv):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class AppendsToList(SepConv):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape)
        return super().forward(x)


class CountsInDict(SepConv):
    def __init__(self) -> None:
        super().__init__()
        self.counts = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.counts["calls"] += 1
        return super().forward(x)


class DrawsANumber(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(())
        return super().forward(x)


class OwnCall(SepConv):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class CallsTwice(nn.ReLU):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


def on_the_instance() -> SepConv:
    block = SepConv()
    block.forward = functools.partial(SepConv.forward, block)  # type: ignore[method-assign]
    return block


def folded_by_hand(biased: tuple[str, ...] = ("sp_conv1", "sp_conv2")) -> SepConv:
    """With biases in place of batch norm."""
    block = SepConv()
    block.bn = nn.Identity()  # type: ignore[assignment]
    for i, name in enumerate(biased):
        conv = block.get_submodule(name)
        conv.bias = nn.Parameter(random(conv.out_channels, seed=i))
    return block


class FoldedWithoutNorm(SepConv):
    """As code for deployment is written."""

    def __init__(self) -> None:
        super().__init__()
        del self.bn
        self.sp_conv2.bias = nn.Parameter(random(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.cross(x)))


def bare_with_bias() -> nn.Module:
    block = Bare()
    block.sp_conv1.bias = nn.Parameter(random(6))
    return block


def with_kernels(size: int) -> SepConv:
    block = SepConv()
    pad = size // 2
    block.sp_conv1 = nn.Conv2d(6, 6, (size, 1), padding=(pad, 0), groups=6, bias=False)
    block.sp_conv2 = nn.Conv2d(6, 6, (1, size), padding=(0, pad), groups=6, bias=False)
    return block


class OneSquare(nn.Module):
    """A depthwise separable block as MobileNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.ch_conv1 = nn.Conv2d(3, 6, 1, bias=False)
        self.sp_conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.bn, self.relu, self.pool = nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn(self.sp_conv(self.ch_conv1(x)))))


def dense_cross() -> SepConv:
    block = SepConv()
    block.sp_conv1 = nn.Conv2d(6, 6, (3, 1), padding=(1, 0), bias=False)
    block.sp_conv2 = nn.Conv2d(6, 6, (1, 3), padding=(0, 1), bias=False)
    return block


NEAR_MISSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bias of the 1x1": (lambda: with_bias("ch_conv1"), "ch_conv1 has a bias"),
    "bias of the 3x1": (lambda: with_bias("sp_conv1"), "sp_conv1 has a bias"),
    "bias of the 1x3": (lambda: with_bias("sp_conv2"), "sp_conv2 has a bias"),
    "dilations differ": (
        lambda: with_conv("sp_conv1", dilation=(3, 1), padding=(3, 0)),
        "sp_conv1 and sp_conv2 have different dilations, 3 and 2",
    ),
    "padding mode": (
        lambda: with_layer(
            "sp_conv1",
            nn.Conv2d(6, 6, (3, 1), 1, (2, 0), (2, 1), 6, bias=False, padding_mode="circular"),
        ),
        "padding mode",
    ),
    "stride": (
        lambda: with_layer("ch_conv1", nn.Conv2d(3, 6, 1, stride=2, bias=False)),
        "ch_conv1 .* stride 1",
    ),
    "padding of the 1x1": (
        lambda: with_layer("ch_conv1", nn.Conv2d(3, 6, 1, padding=1, bias=False)),
        "ch_conv1 pads",
    ),
    "grouped 1x1": (
        lambda: with_layer("ch_conv1", nn.Conv2d(3, 6, 1, groups=3, bias=False)),
        "ch_conv1 is not a 1x1 convolution over all channels",
    ),
    "max pool": (lambda: with_layer("pool", nn.MaxPool2d(2)), "sum of two depthwise|followed by"),
    "ceil mode": (lambda: with_layer("pool", nn.AvgPool2d(2, ceil_mode=True)), "pooling windows"),
    "pool 2x1": (
        lambda: with_layer("pool", nn.AvgPool2d((2, 1))),
        r"pooling windows .*: kernel_size \(2, 1\)",
    ),
    "pool stride": (lambda: with_layer("pool", nn.AvgPool2d(2, 1)), "pooling windows"),
    "pool padding": (lambda: with_layer("pool", nn.AvgPool2d(2, padding=1)), "pooling windows"),
    "pool divisor": (
        lambda: with_layer("pool", nn.AvgPool2d(2, divisor_override=3)),
        "pooling windows",
    ),
    "pool call, ceil mode": (lambda: PoolArguments(2, ceil_mode=True), "pooling windows"),
    "pool call, divisor": (lambda: PoolArguments(2, divisor_override=3), "pooling windows"),
    "pool call, divisor by position": (
        lambda: PoolArguments(2, 2, 0, False, True, 3),
        "pooling windows",
    ),
    "pool size from the input": (GlobalPool, "pool"),
    "GELU": (lambda: with_layer("relu", nn.GELU()), "followed by|sum of two depthwise"),
    "leaky ReLU": (lambda: with_layer("relu", nn.LeakyReLU()), "followed by|sum of two depthwise"),
    "ReLU6": (lambda: with_layer("relu", nn.ReLU6()), "followed by|sum of two depthwise"),
    "instance norm": (lambda: with_layer("bn", nn.InstanceNorm2d(6)), "followed by|sum of two"),
    "no batch norm": (NoBatchNorm, "followed by"),
    "folded, without biases": (lambda: folded_by_hand(biased=()), "followed by"),
    "folded, with a bias of the 1x1": (
        lambda: folded_by_hand(biased=("sp_conv1", "ch_conv1")),
        "ch_conv1 has a bias",
    ),
    "no gradients inside": (UnderNoGrad, "switches gradients or autocast"),
    "gradients inside": (UnderEnableGrad, "switches gradients or autocast"),
    "inference mode inside": (UnderInferenceMode, "switches gradients or autocast"),
    "autocast off inside": (lambda: UnderAutocast(enabled=False), "switches gradients or autocast"),
    "autocast on inside": (lambda: UnderAutocast(enabled=True), "switches gradients or autocast"),
    "decorated": (Decorated, "forward of the module is decorated"),
    "a decorated layer": (lambda: with_layer("relu", DecoratedRelu()), "relu is decorated"),
    "a decorated method": (DecoratedMethod, "switches gradients or autocast"),
    "counts in a buffer": (CountsInBuffer, "."),
    "counts in a buffer, in place": (CountsInPlace, "result does not use"),
    "counts in a tensor": (CountsInTensor, "tensors of its own"),
    "counts in an attribute": (CountsInAttribute, "sets attributes"),
    "appends to a list": (AppendsToList, "sets attributes"),
    "counts in a dict": (CountsInDict, "sets attributes"),
    "draws a number": (DrawsANumber, "tensors of its own"),
    "its own __call__": (OwnCall, "__call__"),
    "a layer's own __call__": (
        lambda: with_layer("relu", CallsTwice()),
        "relu has hooks .*__call__",
    ),
    "a forward on the instance": (on_the_instance, "forward of its own"),
    "kernels of five": (lambda: with_kernels(5), r"sp_conv1 has a \(5, 1\) kernel, expected 3x1"),
    "a kernel that is square": (OneSquare, "found sp_conv: Conv2d.*kernel_size=\\(3, 3\\)"),
    "dense 3x1": (dense_cross, "sp_conv1 is not depthwise"),
    "no ReLU": (NoRelu, "followed by"),
    "pool before ReLU": (PoolBeforeRelu, "followed by|sum of two depthwise"),
    "difference": (Difference, "sum of two depthwise"),
    "weighted sum": (WeightedSum, "sum of two depthwise"),
    "one after the other": (OneAfterTheOther, "sum of two depthwise"),
    "two 1x1": (TwoPointwise, "read different inputs"),
    "something added": (Residual, "."),
    "training differs": (NoiseInTraining, "."),
    "eval differs": (OtherPoolInEval, "differs between training and eval"),
    "data-dependent": (DataDependent, "torch.fx cannot trace"),
    "inline blocks": (Inline, "more than one separable block"),
    "in-place on the input": (InPlaceOnInput, "."),
    "two inputs": (TwoInputs, "."),
    "keeps an intermediate": (KeepsAnIntermediate, "."),
    "parametrised Linear": (LinearOverBins, "Conv2d"),
    "patched forward": (patched, "bn has hooks or a forward of its own"),
    "forward hook": (lambda: hooked("register_forward_hook"), "bn has hooks"),
    "forward pre-hook": (lambda: hooked("register_forward_pre_hook"), "bn has hooks"),
    "backward hook": (lambda: hooked("register_full_backward_hook"), "bn has hooks"),
    "backward pre-hook": (lambda: hooked("register_full_backward_pre_hook"), "bn has hooks"),
}


def state_of(model: nn.Module) -> Any:
    """All that looking might change, random numbers included."""
    attributes = [repr(sorted((k, repr(v)) for k, v in vars(m).items())) for m in model.modules()]
    return attributes, list(map(type, model.modules())), torch.get_rng_state().tolist()


@pytest.mark.parametrize(("make", "reason"), NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_are_left_alone(make: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    model = trained(Model(make())).train()
    modes = [m.training for m in model.modules()]
    modules = list(model.modules())
    twin = copy.deepcopy(model)
    before = state_of(model)
    report = fuse(model)
    assert state_of(model) == before  # looking changes nothing
    assert not report.replaced, report
    assert "block" in report.left_alone
    assert re.search(reason, report.left_alone["block"]), report
    assert "left alone" in str(report)
    assert list(map(id, model.modules())) == list(map(id, modules))
    assert [m.training for m in model.modules()] == modes
    copy.deepcopy(model)  # nothing of the tracing stays behind
    for mode in (False, True):
        x = random(2, 2, 11, 13)
        assert torch.equal(model.train(mode)(x), twin.train(mode)(x))


def test_several_outputs_are_left_alone() -> None:
    model = nn.ModuleDict({"block": TwoOutputs()})
    report = fuse(model)
    assert report.left_alone["block"] == "its forward does not return one tensor"


def test_pool_size_of_one_number_in_a_tuple(backend: str) -> None:
    """AvgPool2d((2,)) is AvgPool2d(2)."""
    model = trained(Model(with_layer("pool", nn.AvgPool2d((2,)))))  # type: ignore[arg-type]
    x = random(2, 2, 11, 13)
    expected = model.eval()(x)
    fuse(model)
    torch.testing.assert_close(model(x), expected, **EXACT)


def test_a_lone_block_cannot_replace_itself() -> None:
    block = SepConv()
    report = fuse(block)
    assert not report.replaced
    assert "nn.Sequential(model)" in report.left_alone["(model)"]


def test_the_advice_for_a_lone_block_works(backend: str) -> None:
    model = trained(nn.Sequential(SepConv())).eval()
    x = random(2, 3, 9, 9)
    expected = model(x)
    report = fuse(model)
    assert list(report.replaced) == ["0"], report
    torch.testing.assert_close(model(x), expected, **EXACT)


def test_a_near_miss_deep_in_a_model_is_named_where_it_is() -> None:
    model = nn.Sequential(
        nn.ModuleDict({"a": OneSquare()}), nn.Conv2d(3, 3, 3), Model(dense_cross())
    )
    report = fuse(model)
    assert list(report.left_alone) == ["0.a", "2.block"]
    assert "3x1 and 1x3" in str(report) and "found no separable" not in str(report)


def test_a_block_of_which_only_the_convolutions_are_fused_is_named(backend: str) -> None:
    parts = {
        "conv": Bare(),
        "bn": nn.BatchNorm2d(6),
        "act": nn.ReLU(),
        "pool": nn.AvgPool2d((2, 1)),
    }
    model = trained(nn.Sequential(nn.Sequential(OrderedDict(parts)))).eval()
    x = random(2, 3, 9, 8)
    expected = model(x)
    report = fuse(model)
    assert list(report.replaced) == ["0.conv"]
    assert "kernel_size (2, 1)" in report.left_alone["0"]
    torch.testing.assert_close(model(x), expected, **EXACT)


def test_a_lone_near_miss_is_named() -> None:
    report = fuse(with_kernels(5))
    assert "(5, 1) kernel" in report.left_alone["(model)"]


class CountsAround(nn.Module):
    """What calls the blocks is looked at for stacks, and is not to notice."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SepConv(), SepConv(6, 6)
        self.register_buffer("steps", torch.zeros(1))
        self.kept = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.kept.add_(torch.rand(1))
        return self.second(self.first(x))


def test_looking_for_stacks_changes_nothing() -> None:
    model = CountsAround()
    rng = torch.get_rng_state()
    assert len(fuse(model).replaced) == 2
    assert model.steps == 0 and model.kept == 0
    assert torch.equal(torch.get_rng_state(), rng)
    model(random(1, 3, 12, 12, dtype=torch.float32))
    assert model.steps == 1


def test_folded_blocks_run_as_a_stack(backend: str) -> None:
    model = nn.Sequential(FoldedWithoutNorm(), SepConv(6, 3), folded_by_hand())
    trained(model).eval()
    twin, x = copy.deepcopy(model), random(2, 3, 16, 17)
    report = fuse(model)
    assert report.stacks == [["0", "1", "2"]], report
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), **EXACT)


def test_a_model_without_separable_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    report = fuse(model)
    assert not report.replaced and not report.left_alone
    assert str(report) == "found no separable convolutions"
