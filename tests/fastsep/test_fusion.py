"""`fuse` on models written without it; see test_recognise.py for what it takes for a block."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import EXACT, Calls, Model, SepConv, random, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import fastsep
from fastsep import fuse, unfuse

SHARED = Path(__file__).parents[2].parent / "shared" / "upstream"
CLIPS = ("metro_station-paris", "street_traffic-dcase")


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


class Bare(SepConv):
    def __init__(self, cin: int = 3, cout: int = 6, dilation: int = 2) -> None:
        super().__init__(cin, cout, dilation)
        del self.bn, self.relu, self.pool

    def forward(self, x: Tensor) -> Tensor:
        return self.cross(x)


def with_weight_norm() -> nn.Module:
    block = SepConv()
    for conv in (block.ch_conv1, block.sp_conv1, block.sp_conv2):
        parametrizations.weight_norm(conv)
    return block


def with_bias(which: str) -> SepConv:
    block = SepConv()
    conv = getattr(block, which)
    conv.bias = nn.Parameter(torch.ones(conv.out_channels))
    return block


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


def test_a_training_step_runs_block_by_block(cpu_kernels: None) -> None:
    model = trained(nn.Sequential(SepConv(), SepConv(6, 5)))
    twin, x = copy.deepcopy(model), random(2, 3, 16, 12)
    assert len(fuse(model).replaced) == 2
    with Calls() as calls:
        y = model.train()(x)
        y.square().sum().backward()
    name = "sep_conv2d_bn_stack"
    assert calls.names == [name, name, f"{name}_backward", f"{name}_backward"]
    expected = twin.train()(x)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, **EXACT)
    for got, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **EXACT)


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
