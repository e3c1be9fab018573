"""Devices and precision.

What a GPU would be given is checked without one: fake tensors know shape, dtype and device but hold
no numbers, so computing with some on "cuda" and some on "cpu" raises, and so does asking for a
number, for which a real GPU would have to be waited for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

import fastsep
from asc import evaluation
from asc.augment import apply_stripes, draw_stripes, mixup
from asc.device import Precision, float32_products, pick_device, send
from asc.errors import UserError
from asc.evaluation import clip_logits, evaluate
from asc.features import LogMel
from asc.losses import focal_loss, soft_cross_entropy
from asc.model import Cnn6, Cnn6Sep, SpecAugment
from asc.presets import PRESETS, get_preset
from asc.training import SceneClassifier, Settings

CLASSES = ("fog", "rain", "snow")
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
BACKENDS = ("reference", "triton")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == pick_device("auto", "bf16") == "cpu"
    with pytest.raises(UserError, match="cuda"):
        pick_device("cuda")
    with pytest.raises(UserError, match="tf32"):
        pick_device("auto", "tf32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(name) for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    assert pick_device("auto", "tf32") == "cuda"
    with pytest.raises(UserError, match="tf32"):
        pick_device("cpu", "tf32")


@pytest.mark.parametrize("precision", get_args(Precision))
def test_float32_products_sets_torchs_switch_and_puts_it_back(precision: Precision) -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), float32_products(precision):
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == before == "highest"


def test_send_leaves_the_cpu_alone() -> None:
    x = torch.ones(3)
    assert send(x, "cpu") is x


# Fake GPU.


class Transfers(TorchDispatchMode):
    """Copies between devices: (from, to, whether the host goes on without waiting)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (aten.to, aten._to_copy, aten.copy_):
            names = (argument.name for argument in func._schema.arguments)
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            source = args[1 if func.overloadpacket is aten.copy_ else 0]
            ends = source.device.type, result.device.type
            if ends[0] != ends[1]:
                self.seen.append((*ends, given.get("non_blocking", False)))
        return result

    def waits(self) -> list[tuple[str, str, bool]]:
        return [transfer for transfer in self.seen if not transfer[2]]


@contextmanager
def fake_gpu(backend: str = "reference") -> Iterator[Transfers]:
    """Inside, all new tensors are fake; modules are made before and moved inside.

    backend: what fastsep takes for CUDA tensors; of the operators their fake kernels run.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(allow_non_fake_inputs=True),
        Transfers() as transfers,
    ):
        patch.setattr(Tensor, "pin_memory", lambda self: self)  # fake tensors have none
        patch.setattr("fastsep.dispatch.select", lambda device: backend)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # both for autocast
        yield transfers


def fake(*shape: int) -> Tensor:
    return torch.empty(shape, device=CUDA)


def test_the_fake_gpu_finds_mistakes() -> None:
    with fake_gpu() as gpu:
        with pytest.raises(RuntimeError, match="two different devices"):
            fake(3) + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            fake(3).sum().item()
        fake(3).cpu()
        torch.ones(3).to(CUDA)
        send(torch.ones(3), CUDA)
        fake(3).copy_(torch.ones(3))
    up, down = ("cpu", "cuda"), ("cuda", "cpu")
    assert gpu.seen == [(*down, False), (*up, False), (*up, True), (*up, False)]


def test_augmentation_stays_on_the_gpu() -> None:
    with fake_gpu() as gpu:
        stripes = draw_stripes(4, 32, 256, device=CUDA)
        assert stripes.device == CUDA
        assert apply_stripes(fake(4, 1, 32, 256), stripes).device == CUDA
        mixed, targets = mixup(fake(4, 1, 32, 256), fake(4, 3), 0.2)
        assert mixed.device == targets.device == CUDA
        assert mixed.dtype == targets.dtype == torch.float32
        for loss in (soft_cross_entropy, focal_loss):
            assert loss(fake(4, 3), targets).device == CUDA
    assert len(gpu.seen) == 2 and not gpu.waits()  # stripes and permutation


def test_features_stay_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    extract = LogMel()
    with fake_gpu() as gpu:
        extract.to(CUDA)
        gpu.seen.clear()
        with pytest.raises(DataDependentOutputException):  # the check of the samples: the one wait
            extract(fake(2, 44_100))
        monkeypatch.setattr(FakeTensor, "__bool__", lambda self: True)
        logmel = extract(fake(2, 44_100))
    assert logmel.device == CUDA and logmel.shape == (2, 1, 44, 256)
    assert not gpu.seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", [Cnn6Sep, Cnn6, lambda: Cnn6Sep().folded()])
def test_networks_stay_on_the_gpu(make: Callable[[], Cnn6Sep], train: bool, backend: str) -> None:
    model = make().train(train)
    with fake_gpu(backend) as gpu:
        model.to(CUDA)
        stripes = SpecAugment().draw(4, 32, 256, device=CUDA)
        gpu.seen.clear()
        for masks in (None, stripes):
            assert model(fake(4, 1, 32, 256), masks).device == CUDA
    assert not gpu.seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("preset", PRESETS)
def test_a_training_step_never_waits_for_the_gpu(
    preset: str, precision: Precision, backend: str, monkeypatch: pytest.MonkeyPatch
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
        module.to(CUDA)
        gpu.seen.clear()
        batch = fake(4, 1, 32, 256), torch.zeros(4, dtype=torch.int64, device=CUDA)
        loss = module.training_step(batch, 0)
        module.eval().validation_step(batch, 0)
    assert outputs[0].dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert outputs[1].dtype == loss.dtype == torch.float32
    kept, labels = module.validated[0]
    assert loss.device == kept.device == labels.device == CUDA
    assert len(gpu.seen) == (2 if preset == "ce_mu_tta" else 1)  # stripes and permutation
    assert not gpu.waits()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tta", [0, 3])
@pytest.mark.parametrize("precision", get_args(Precision))
def test_evaluation_never_waits_for_the_gpu(
    precision: Precision, tta: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_checked", lambda results: results)  # waits, in the end
    model = Cnn6Sep(3).folded()
    with fake_gpu(backend) as gpu:
        model.to(CUDA)
        monkeypatch.setattr(Cnn6Sep, "to", lambda self, device: self)  # fakes can move but once
        clips = [(torch.ones(1, 32, 256), 0) for _ in range(5)]
        gpu.seen.clear()
        results = evaluate(model, clips, tta=tta, device="cuda", precision=precision)
    assert results.device == CUDA and results.shape == (5, 3)
    assert len(gpu.seen) == (2 * len(clips) if tta else 1)  # clips and masks; one batch
    assert not gpu.waits()


def test_autograd_stays_on_the_device() -> None:
    """On "meta", tensors without numbers: the fake GPU has no autograd."""
    model = Cnn6Sep(3).to("meta")
    logmel, targets = torch.empty(4, 1, 32, 256, device="meta"), torch.empty(4, 3, device="meta")
    logmel, targets = mixup(logmel, targets, 0.2)
    stripes = SpecAugment().draw(4, 32, 256, device="meta")
    with fastsep.use_backend("reference"):
        focal_loss(model(logmel, stripes), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, name


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


def test_bf16_evaluation_rounds_products_only() -> None:
    torch.manual_seed(0)
    model = Cnn6Sep(3)
    clips = [(15 * torch.randn(1, 32, 256) - 60, 0) for _ in range(3)]
    with torch.no_grad():
        model.fc2.weight *= 20  # outputs of an untrained network hardly differ
        model(torch.stack([x for x, _ in clips]))
    model = model.folded()
    for tta in (0, 3):
        exact, rounded = (evaluate(model, clips, tta=tta, precision=p) for p in ("float32", "bf16"))
        assert (rounded - exact).abs().max() < 0.02
    assert model.blocks.compute == "bf16"
    clip_logits(model, clips)
    assert model.blocks.compute is None
