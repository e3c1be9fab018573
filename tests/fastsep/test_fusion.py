"""`fuse` on models written without it: what it replaces and what it leaves alone."""

import copy
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import fastsep
from fastsep import fuse, unfuse

SHARED = Path(__file__).parents[2].parent / "shared" / "upstream"
CLIPS = ("metro_station-paris", "street_traffic-dcase")
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # float64: a few thousand eps


class SepConv(nn.Module):
    """A separable block as people write it."""

    def __init__(self, cin: int = 3, cout: int = 6, dilation: int = 2, pool: int = 2) -> None:
        super().__init__()
        self.ch_conv1 = nn.Conv2d(cin, cout, 1, bias=False)
        self.sp_conv1 = nn.Conv2d(
            cout, cout, (3, 1), dilation=dilation, padding=(dilation, 0), groups=cout, bias=False
        )
        self.sp_conv2 = nn.Conv2d(
            cout, cout, (1, 3), dilation=dilation, padding=(0, dilation), groups=cout, bias=False
        )
        self.bn = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(pool)

    def cross(self, x: Tensor) -> Tensor:
        z = self.ch_conv1(x)
        return self.sp_conv1(z) + self.sp_conv2(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn(self.cross(x))))


class Cnn6(nn.Module):
    """The 60k-parameter network, in separable layers of plain PyTorch."""

    def __init__(self, bins: int = 256, channels: tuple[int, ...] = (64, 128, 128, 128)) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(bins)
        self.conv1 = SepConv(1, channels[0])
        self.conv2 = SepConv(channels[0], channels[1])
        self.conv3 = SepConv(channels[1], channels[2])
        self.conv4 = SepConv(channels[2], channels[3])
        self.dropout = nn.Dropout(0.2)
        self.fc1 = nn.Linear(channels[3], channels[3])
        self.fc2 = nn.Linear(channels[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        x = self.conv4(self.conv3(self.conv2(self.conv1(x))))
        x = x.mean(3)
        x = x.amax(2) + x.mean(2)
        x = torch.relu(self.fc1(self.dropout(x)))
        return self.fc2(self.dropout(x))


class Model(nn.Module):
    """A block with something around it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.before = nn.Conv2d(2, 3, 1)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.block(self.before(x)))


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trained(module: nn.Module) -> Any:
    """In float64, with the batch norms of a network that has seen data."""
    rng = torch.Generator().manual_seed(1)
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
                if tensor is not None:
                    with torch.no_grad():
                        tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.2)
    return module.double()


def eval_and_train(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, gradients and buffers of a pass in eval mode and one in training."""
    results = []
    for mode in (False, True):
        model.train(mode)
        y = model(x)
        parameters = [p for p in model.parameters() if p.requires_grad]
        results += [y, *torch.autograd.grad(y.square().sum(), parameters)]
    model.eval()
    with torch.no_grad():
        results.append(model(x))  # after training moved the statistics
    return [*results, *model.buffers()]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    for got, wanted in zip(a, b, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


# The network of the released weights.


@pytest.mark.skipif(not SHARED.exists(), reason="no released weights beside the repository")
@pytest.mark.parametrize("clip", CLIPS)
def test_released_weights_give_the_golden_logits(backend: str, clip: str) -> None:
    checkpoint = torch.load(SHARED / "ce_tta.pth", map_location="cpu", weights_only=True)
    golden = np.load(SHARED / "golden_ce_tta.npz")
    model = Cnn6().eval()
    model.load_state_dict(checkpoint["net"], strict=True)
    report = fuse(model)
    assert list(report.replaced) == ["conv1", "conv2", "conv3", "conv4"]
    assert not report.left_alone

    means: list[Tensor] = []
    for i in range(1, 5):
        layer = model.get_submodule(f"conv{i}")
        layer.register_forward_hook(lambda _m, _x, y: means.append(y.mean((0, 2, 3))))
    with torch.no_grad():
        logits = model(torch.from_numpy(golden[f"{clip}/logmel"])[None, None])[0]
    exact = torch.from_numpy(golden[f"{clip}/logits_f64"])
    assert (logits - exact).abs().max() <= 1e-4 * exact.abs().max()
    for i, mean in enumerate(means, 1):
        expected = torch.from_numpy(golden[f"{clip}/block{i}_mean"])
        assert (mean - expected).abs().max() <= 1e-5 * expected.abs().max()


# Training.


def losses(model: nn.Module, dtype: torch.dtype, fused: bool) -> Tensor:
    """50 steps of AdamW on random data; the optimizer is older than the fusion."""
    model = copy.deepcopy(model).to(dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if fused:
        assert len(fuse(model).replaced) == 4
    rng = torch.Generator().manual_seed(3)
    curve = []
    for _ in range(50):
        x = torch.randn(4, 1, 35, 32, generator=rng).to(dtype)
        labels = torch.randint(10, (4,), generator=rng)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    model.eval()
    with torch.no_grad():
        curve.append(model(x).sum())
    return torch.stack(curve).double()


def test_training_follows_the_eager_model(backend: str) -> None:
    torch.manual_seed(0)
    model = Cnn6(bins=32, channels=(8, 12, 16, 10))
    model.dropout.p = 0.0
    exact = losses(model, torch.float64, fused=False)
    assert exact[:-1].max() > exact[:-1].min() + 0.1  # it does train
    assert (losses(model, torch.float64, fused=True) - exact).abs().max() <= 1e-9
    # In float32 both curves drift from the exact one by rounding, at a pace the model sets: the
    # fused one no faster than the eager one, but for luck.
    eager = (losses(model, torch.float32, fused=False) - exact).abs().max()
    fused = (losses(model, torch.float32, fused=True) - exact).abs().max()
    assert fused <= 10 * eager


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
    assert model.block is not original
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == parameters
    assert_same(eval_and_train(model, x), eval_and_train(twin, x))

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


NEAR_MISSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bias of the 1x1": (lambda: with_bias("ch_conv1"), "ch_conv1 has a bias"),
    "bias of the 3x1": (lambda: with_bias("sp_conv1"), "sp_conv1 has a bias"),
    "bias of the 1x3": (lambda: with_bias("sp_conv2"), "sp_conv2 has a bias"),
    "dilations differ": (
        lambda: with_conv("sp_conv1", dilation=(3, 1), padding=(3, 0)),
        "different dilations",
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
    "pool 2x1": (lambda: with_layer("pool", nn.AvgPool2d((2, 1))), "pooling windows"),
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
    "forward hook": (lambda: hooked("register_forward_hook"), "bn has hooks"),
    "forward pre-hook": (lambda: hooked("register_forward_pre_hook"), "bn has hooks"),
    "backward hook": (lambda: hooked("register_full_backward_hook"), "bn has hooks"),
    "backward pre-hook": (lambda: hooked("register_full_backward_pre_hook"), "bn has hooks"),
}


@pytest.mark.parametrize(("make", "reason"), NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_are_left_alone(make: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    model = trained(Model(make())).train()
    modes = [m.training for m in model.modules()]
    modules = list(model.modules())
    twin = copy.deepcopy(model)
    report = fuse(model)
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


def test_a_model_without_separable_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    report = fuse(model)
    assert not report.replaced and not report.left_alone
    assert str(report) == "found no separable convolutions"


# Models with fused blocks in them.


class TwoPaths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = SepConv(3, 3)
        self.b = self.a
        self.c = nn.ModuleList([SepConv(3, 3), self.a])

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).sum() + self.b(2 * x).sum() + self.c[1](self.c[0](x)).sum()


def test_a_module_used_in_several_places_stays_one(backend: str) -> None:
    model = trained(TwoPaths()).eval()
    x = random(1, 3, 12, 12)
    expected = model(x)
    names = list(model.state_dict())
    report = fuse(model)
    assert set(report.replaced) == {"a", "c.0"}
    assert model.a is model.b is model.c[1]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected, **EXACT)
    unfuse(model)
    assert model.a is model.b is model.c[1]
    assert all(isinstance(m, SepConv) for m in (model.a, model.b, *model.c))
    torch.testing.assert_close(model(x), expected, **EXACT)


def test_fusing_again_changes_nothing_and_complains_of_nothing() -> None:
    model = nn.Sequential(Model(SepConv()), SepConv(6, 6))
    assert len(fuse(model).replaced) == 2
    modules = list(model.modules())
    report = fuse(model)
    assert not report.replaced
    assert not report.left_alone, report
    assert list(map(id, model.modules())) == list(map(id, modules))


def test_partly_fused() -> None:
    model = nn.ModuleDict(
        {"good": Model(SepConv()), "bad": Model(with_bias("sp_conv1")), "other": nn.Linear(1, 1)}
    )
    report = fuse(model)
    assert list(report.replaced) == ["good.block"]
    assert list(report.left_alone) == ["bad.block"]


def test_fused_layers_of_this_library_are_left_as_they_are() -> None:
    model = nn.Sequential(fastsep.SepConvBlock(1, 4), SepConv(4, 4), nn.Sigmoid())
    assert list(fuse(model).replaced) == ["1"]
    assert isinstance(model[0], fastsep.SepConvBlock)


def test_switching_modes_and_training_in_between(backend: str) -> None:
    """Eval mode always uses the weights and statistics of the moment."""
    model = trained(Model(SepConv()))
    twin = copy.deepcopy(model)
    fuse(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, twin)]
    x = random(2, 2, 11, 13)
    for _ in range(3):
        outputs = []
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            m.train()
            m(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                outputs.append(m.eval()(x))
                m.train()(x)  # moves the statistics only
                outputs.append(m.eval()(x))
        torch.testing.assert_close(outputs[:2], outputs[2:], **EXACT)


def test_eval_follows_parametrised_weights(backend: str) -> None:
    """Their weight is a new tensor in every forward, perhaps where the last one was."""
    model = trained(Model(with_weight_norm())).eval()
    twin = copy.deepcopy(model)
    fuse(model)
    x = random(1, 2, 11, 13)
    with torch.no_grad():
        for _ in range(20):
            for m in (model, twin):
                for name, parameter in m.named_parameters():
                    if "sp_conv" in name:
                        parameter.mul_(1.1)
            torch.testing.assert_close(model(x), twin(x), **EXACT)


@pytest.mark.parametrize("frozen", [True, False])
def test_unfuse_keeps_every_layers_mode(frozen: bool) -> None:
    model: Any = Model(SepConv()).train()
    fuse(model)
    if frozen:
        model.block.bn.eval()
    modes = [m.training for m in model.modules()]
    unfuse(model)
    assert [m.training for m in model.modules()] == modes


def test_a_frozen_batch_norm_stays_frozen(backend: str) -> None:
    model = trained(Model(SepConv())).train()
    model.block.bn.eval()
    twin, x = copy.deepcopy(model), random(2, 2, 11, 13)
    fuse(model)
    torch.testing.assert_close(model(x), twin(x), **EXACT)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **EXACT)


class CustomTrain(SepConv):
    """Keeps its batch norm frozen, as detection backbones do."""

    def train(self, mode: bool = True) -> "CustomTrain":
        super().train(mode)
        self.bn.eval()
        return self


def test_a_block_with_its_own_train_keeps_it(backend: str) -> None:
    model = trained(Model(CustomTrain()))
    twin, x = copy.deepcopy(model), random(2, 2, 11, 13)
    fuse(model)
    torch.testing.assert_close(model.train()(x), twin.train()(x), **EXACT)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **EXACT)


class Looks(nn.Module):
    """Uses more of its block than its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = SepConv()
        self.block.gain = 3  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.block.gain * self.block(x).mean() + self.block.cross(x).mean()


def test_attributes_and_methods_of_a_replaced_block_stay_reachable(backend: str) -> None:
    model = trained(Looks()).eval()
    x = random(1, 3, 9, 9)
    expected = model(x)
    assert list(fuse(model).replaced) == ["block"]
    torch.testing.assert_close(model(x), expected, **EXACT)
    with pytest.raises(AttributeError, match="nonsense"):
        model.block.nonsense  # noqa: B018


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_fused_model(backend: str, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(Model(SepConv())).eval()
    fuse(model)
    x = random(1, 2, 11, 13)
    with torch.no_grad():
        expected = model(x)
        twin = duplicate(model)
        assert torch.equal(twin(x), expected)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        changed = twin(x)
        assert not torch.equal(changed, expected)
        assert torch.equal(model(x), expected)
        unfuse(twin)
        assert isinstance(twin.block, SepConv)
        torch.testing.assert_close(twin(x), changed, **EXACT)


def test_moving_a_fused_model_moves_its_layers(backend: str) -> None:
    model = Model(SepConv()).eval()
    fuse(model)
    y = model.bfloat16()(random(1, 2, 11, 13, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    unfuse(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_state_dicts_are_exchanged_with_the_eager_model(backend: str, tmp_path: Path) -> None:
    fused, eager = trained(Model(SepConv())).eval(), Model(SepConv()).double().eval()
    fuse(fused)
    torch.save(fused.state_dict(), tmp_path / "weights.pt")
    eager.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    x = random(1, 2, 11, 13)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), eager(x), **EXACT)
        doubled = {k: 2 * v for k, v in eager.state_dict().items()}
        fused.load_state_dict(doubled, strict=True)
        eager.load_state_dict(doubled, strict=True)
        torch.testing.assert_close(fused(x), eager(x), **EXACT)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_fused_model(backend: str, fresh_dynamo: None, training: bool) -> None:
    model = trained(nn.Sequential(Model(SepConv()), Bare(6, 4))).train(training)
    fuse(model)
    twin, x = copy.deepcopy(model), random(2, 2, 13, 11)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), twin(x)
    torch.testing.assert_close(y, expected, **EXACT)
    y.sum().backward()
    expected.sum().backward()
    for got, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-10, atol=1e-10)


def test_autocast_of_a_fused_model(backend: str) -> None:
    model = Model(SepConv())
    fuse(model)
    for mode in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.train(mode)(random(2, 2, 11, 13).float()).dtype == torch.bfloat16
