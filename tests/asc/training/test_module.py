from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import fastsep
from asc.augment import SpecAugment, mixup
from asc.compute import Precision
from asc.losses import focal_loss, soft_cross_entropy
from asc.model import Cnn6Sep
from asc.training.module import SceneClassifier
from asc.training.settings import PRESETS, Settings, get_preset

Clips = Callable[..., Any]
FakeGpu = Callable[..., Any]  # the fixture of conftest
CLASSES = ("fog", "rain", "snow")
BACKENDS = ("reference", "triton")


@pytest.mark.parametrize("name", PRESETS)
def test_a_step_is_the_presets(name: str, make_clips: Clips) -> None:
    """Loss of a step against the recipe written out, with the same random numbers."""
    preset = replace(get_preset(name), dropout=0.0, time_width=8)
    module = SceneClassifier(Settings(preset), CLASSES)
    logmel, labels = torch.stack([x for x, _ in make_clips(6)]), torch.tensor(make_clips(6).labels)
    drawn: list[Tensor] = []
    draw = SpecAugment.draw

    def spy(self: SpecAugment, *args: Any, **options: Any) -> Tensor:
        drawn.append(draw(self, *args, **options))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpecAugment, "draw", spy)
        patch.setattr(SceneClassifier, "log", lambda *_, **__: None)
        patch.setattr(SceneClassifier, "global_step", 0)
        patch.setattr(torch, "manual_seed", lambda seed: None)
        torch.random.default_generator.manual_seed(5)
        loss = module.training_step((logmel, labels), 0)

    targets = one_hot(labels, 3).float()
    torch.random.default_generator.manual_seed(5)
    if name == "ce_mu_tta":
        logmel, targets = mixup(logmel, targets, 0.2)
    assert drawn[0].shape == (6, 4, 3)
    assert (drawn[0][:, 2:, 2] - drawn[0][:, 2:, 1]).max() < {"ce_mu_tta": 16}.get(name, 32)
    criterion = focal_loss if name == "fl_tta" else soft_cross_entropy
    torch.testing.assert_close(loss, criterion(module.model(logmel, drawn[0]), targets))


def test_optimiser_and_schedule() -> None:
    preset = replace(get_preset("fl_tta"), epochs=4)
    (optimizer,), (schedule,) = SceneClassifier(Settings(preset), CLASSES).configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["weight_decay"] == 1e-5
    rates = []
    for _ in range(5):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    # Half a cosine from 1e-3 to 1e-5: quarters of it at (1 + cos(k pi / 4)) / 2.
    cosine = torch.tensor([1, 0.853553, 0.5, 0.146447, 0], dtype=torch.float64)
    expected = 1e-5 + (1e-3 - 1e-5) * cosine
    torch.testing.assert_close(
        torch.tensor(rates, dtype=torch.float64), expected, rtol=1e-5, atol=0
    )


# Fused against reference layers.

Optimizer = Callable[[Any], torch.optim.Optimizer]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("preset", PRESETS)
def test_a_training_step_never_waits_for_the_gpu(
    preset: str,
    precision: Precision,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    fake_gpu: FakeGpu,
) -> None:
    outputs = []
    forward = Cnn6Sep.forward

    def spy(self: Cnn6Sep, logmel: Tensor, stripes: Tensor | None = None) -> Tensor:
        outputs.append(forward(self, logmel, stripes))
        return outputs[-1]

    monkeypatch.setattr(Cnn6Sep, "forward", spy)
    monkeypatch.setattr(SceneClassifier, "log", lambda *_, **__: None)
    monkeypatch.setattr(SceneClassifier, "global_step", 0)
    module = SceneClassifier(Settings(get_preset(preset), precision=precision), CLASSES)
    criterion = module.loss

    def loss_in_float32(logits: Tensor, targets: Tensor) -> Tensor:
        assert logits.dtype == targets.dtype == torch.float32
        return criterion(logits, targets)

    module.loss = loss_in_float32
    with fake_gpu(backend) as gpu:
        module.to(gpu.device)
        gpu.seen.clear()
        batch = gpu.empty(4, 1, 32, 256), torch.zeros(4, dtype=torch.int64, device=gpu.device)
        loss = module.training_step(batch, 0)
        module.eval().validation_step(batch, 0)
    assert outputs[0].dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert outputs[1].dtype == loss.dtype == torch.float32
    kept, labels = module.validated[0]
    assert loss.device == kept.device == labels.device == gpu.device
    assert len(gpu.seen) == (2 if preset == "ce_mu_tta" else 1)  # stripes and permutation
    assert not gpu.waits()


# bfloat16, which CPUs have too.


def step(precision: Precision) -> tuple[SceneClassifier, Tensor]:
    """The loss of a step and its gradients, from the same weights and random numbers."""
    torch.manual_seed(0)
    preset = replace(get_preset("fl_tta"), time_width=8)
    module = SceneClassifier(Settings(preset, precision=precision), CLASSES)
    logmel = 15 * torch.randn(6, 1, 32, 256, generator=torch.Generator().manual_seed(1)) - 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneClassifier, "log", lambda *_, **__: None)
        patch.setattr(SceneClassifier, "global_step", 0)
        loss = module.training_step((logmel, torch.arange(6) % 3), 0)
    loss.backward()
    return module, loss


def test_bf16_step_is_close_to_float32s() -> None:
    exact, expected = step("float32")
    mixed, loss = step("bf16")
    assert loss.dtype == torch.float32
    assert 0 < abs(loss - expected) < 2**-7 * expected  # bfloat16's eps
    gradients = [
        torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        for module in (exact, mixed)
    ]
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


# Fused against reference layers.

Optimizer = Callable[[Any], torch.optim.Optimizer]


def curve(
    make_clips: Clips, dtype: torch.dtype, backend: str | None, optimizer: Optimizer
) -> Tensor:
    """Losses of 50 training steps on 8 masked clips, 2 a step."""
    torch.manual_seed(0)
    model = Cnn6Sep(len(CLASSES), dropout=0.0).to(dtype)
    optimise = optimizer(model.parameters())
    generator = torch.Generator().manual_seed(1)
    clips = make_clips(8)
    targets = one_hot(torch.tensor(clips.labels), len(CLASSES)).to(dtype)
    losses = []
    with fastsep.use_backend(backend):
        for _ in range(50):
            batch = torch.randperm(8, generator=generator)[:2]
            stripes = SpecAugment(5, 32).draw(2, 16, 256, generator)
            logits = model(clips.logmels[batch].to(dtype), stripes)
            loss = soft_cross_entropy(logits, targets[batch])
            optimise.zero_grad()
            loss.backward()
            optimise.step()
            losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def needs_kernels() -> None:
    if not fastsep.backends()["cpu"].available:
        pytest.skip("no compiled kernels here: the default is the reference")


def test_loss_curves_agree_in_float64(make_clips: Clips) -> None:
    needs_kernels()

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-5)

    reference = curve(make_clips, torch.float64, "reference", adamw)
    assert reference[-10:].mean() < 0.9 * reference[:10].mean()  # it learns, so the losses tell
    assert (curve(make_clips, torch.float64, None, adamw) - reference).abs().max() < 1e-9


def test_loss_curves_agree_in_float32(make_clips: Clips) -> None:
    """Rounding grows from step to step. How far is measured: reference layers in float32 against
    float64; fused layers in float32 may drift from reference layers in float32 as far, not farther.
    (SGD: AdamW's first steps divide rounding noise by itself where the gradient is nearly 0.)"""
    needs_kernels()

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=3e-3, momentum=0.9)

    reference = curve(make_clips, torch.float32, "reference", sgd)
    rounding = (
        (reference - curve(make_clips, torch.float64, "reference", sgd)).abs().cummax(0).values
    )
    drift = (curve(make_clips, torch.float32, None, sgd) - reference).abs()
    floor = 100 * torch.finfo(torch.float32).eps  # before the growth starts, a step's own rounding
    assert rounding[-1] < 0.1  # or the test would show nothing
    assert (drift <= 3 * rounding + floor).all()
