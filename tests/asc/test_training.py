import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

import fastsep
from asc import training
from asc.augment import mixup
from asc.checkpoint import load_model, load_trainable
from asc.errors import UserError
from asc.losses import focal_loss, soft_cross_entropy
from asc.model import Cnn6Sep, SpecAugment
from asc.presets import PRESETS, get_preset
from asc.training import (
    AtomicCheckpointIO,
    SceneClassifier,
    Settings,
    fit,
    read_settings,
)

CLASSES = ("fog", "rain", "snow")
PRESET = replace(get_preset("ce_mu_tta"), epochs=3, batch_size=4, time_width=5)
SETTINGS = Settings(PRESET, seed=1)


class Clips(Dataset[tuple[Tensor, int]]):
    """Random log-mels of 16 frames; the class shows in the level."""

    def __init__(self, n: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = [i % len(CLASSES) for i in range(n)]
        noise = 15 * torch.randn(n, 1, 16, 256, generator=generator) - 60
        self.logmels = noise + 10 * torch.tensor(self.labels)[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.logmels[index], self.labels[index]


def train(out: Path, settings: Settings = SETTINGS, **options: Any) -> dict[str, Tensor]:
    fit(Clips(10), Clips(5, seed=1), CLASSES, settings, out, **options)
    return load_trainable(out / "last.ckpt").state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "run"
    train(out)
    return out


def test_run_folder(finished: Path) -> None:
    files = {path.name for path in finished.iterdir()}
    assert files == {"config.json", "best.ckpt", "last.ckpt", "folded.pt", "tensorboard"}
    assert list((finished / "tensorboard").glob("events.out.tfevents*"))
    config = json.loads((finished / "config.json").read_text())
    assert config["preset"]["name"] == "ce_mu_tta" and config["preset"]["epochs"] == 3
    assert config["seed"] == 1 and config["classes"] == list(CLASSES)
    assert config["clips"] == {"train": 10, "validation": 5}
    assert config["versions"].keys() >= {"asc", "python", "torch", "lightning"}
    assert read_settings(finished) == SETTINGS
    folded, best = load_model(finished / "folded.pt"), load_model(finished / "best.ckpt")
    assert folded.classes == best.classes == CLASSES
    assert folded.specaugment == best.specaugment == SpecAugment(5, 16, 2)
    for name, tensor in folded.state_dict().items():
        assert torch.equal(tensor, best.state_dict()[name].half().float()), name


def test_last_batch_is_dropped_and_the_schedule_ends(finished: Path) -> None:
    content = torch.load(finished / "last.ckpt", weights_only=True)
    assert content["global_step"] == 3 * (10 // 4)
    assert content["lr_schedulers"][0]["_last_lr"] == [PRESET.min_lr]


def test_a_seed_gives_the_same_weights_again(finished: Path, tmp_path: Path) -> None:
    first = load_trainable(finished / "last.ckpt").state_dict()
    assert same(first, train(tmp_path / "again"))
    assert not same(first, train(tmp_path / "other", replace(SETTINGS, seed=2)))


@pytest.mark.parametrize("epoch", [0, 1])
def test_resumed_run_ends_as_if_never_interrupted(
    epoch: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SceneClassifier.training_step

    def interrupted(self: SceneClassifier, batch: Any, batch_idx: int) -> Tensor:
        if self.current_epoch == epoch and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SceneClassifier, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "folded.pt").exists()
    monkeypatch.undo()
    moved = tmp_path / "moved"
    os.rename(tmp_path / "run", moved)
    resumed = train(moved, resume=True)
    assert same(resumed, load_trainable(finished / "last.ckpt").state_dict())
    best = load_trainable(moved / "best.ckpt").state_dict()
    assert same(best, load_trainable(finished / "best.ckpt").state_dict())
    assert same(resumed, train(moved, resume=True))  # nothing left to do


def test_runs_are_not_overwritten(finished: Path, tmp_path: Path) -> None:
    before = (finished / "last.ckpt").stat()
    with pytest.raises(UserError, match="is not empty"):
        train(finished)
    with pytest.raises(UserError, match="other settings"):
        train(finished, replace(SETTINGS, seed=7), resume=True)
    with pytest.raises(UserError, match="other classes"):
        fit(Clips(10), Clips(5), ("x", "y", "z"), SETTINGS, finished, resume=True)
    assert (finished / "last.ckpt").stat() == before
    with pytest.raises(UserError, match="no run to resume"):
        train(tmp_path, resume=True)
    (tmp_path / "config.json").write_text('{"preset": ')
    with pytest.raises(UserError, match=r"config\.json: is not"):
        read_settings(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        train(tmp_path / "config.json")


def test_damaged_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"half")
    config = {"preset": asdict(PRESET), "seed": 1, "classes": CLASSES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"last\.ckpt: .*damaged"):
        train(tmp_path, resume=True)


def test_loading_in_processes_changes_nothing(finished: Path, tmp_path: Path) -> None:
    weights = train(tmp_path / "run", workers=1)
    assert same(weights, load_trainable(finished / "last.ckpt").state_dict())


def test_mixed_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in bfloat16 goes about where float32 goes, and everything kept is float32."""
    losses: list[Tensor] = []

    def note(self: SceneClassifier, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses.append(outputs["loss"])

    monkeypatch.setattr(SceneClassifier, "on_train_batch_end", note)
    settings = replace(SETTINGS, precision="bf16")
    exact, mixed = train(tmp_path / "exact"), train(tmp_path / "run", settings)
    expected, actual = torch.stack(losses).chunk(2)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=0)  # bfloat16's eps
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert all(t.dtype == exact[name].dtype for name, t in mixed.items())
    moments = [s for state in content["optimizer_states"][0]["state"].values()
               for s in (state["exp_avg"], state["exp_avg_sq"])]  # fmt: skip
    assert {moment.dtype for moment in moments} == {torch.float32}
    assert not same(mixed, exact)
    assert read_settings(tmp_path / "run") == settings
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "run", resume=True)
    assert same(mixed, train(tmp_path / "run", settings, resume=True))


def test_runs_from_before_the_choice_of_a_precision(tmp_path: Path) -> None:
    config = {"preset": asdict(PRESET), "seed": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_what_lightning_is_asked_for_on_a_gpu(
    precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Trainer:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit(self, module: SceneClassifier, *loaders: Any, **_: Any) -> None:
            asked["pinned"] = [loader.pin_memory for loader in loaders]
            asked["tf32"] = torch.backends.cuda.matmul.allow_tf32
            raise KeyboardInterrupt

    monkeypatch.setattr(lightning, "Trainer", Trainer)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", replace(SETTINGS, precision=precision), device="cuda")
    assert (asked["accelerator"], asked["devices"]) == ("cuda", 1)
    assert asked["pinned"] == [True, True]
    assert asked["tf32"] == (precision == "tf32")
    assert asked["log_every_n_steps"] == 10


def test_losses_are_looked_at_every_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the progress bar asks for numbers now and then, and at the end of an epoch."""
    monkeypatch.setitem(training.LOOK_EVERY, "cpu", 3)
    asked = []
    update = training.Progress._update_metrics

    def spy(self: Any, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.training:
            asked.append((trainer.current_epoch, trainer.fit_loop.batch_idx))
        update(self, trainer, pl_module)

    monkeypatch.setattr(training.Progress, "_update_metrics", spy)
    preset = replace(PRESET, epochs=2, batch_size=2)  # 5 steps an epoch
    train(tmp_path / "run", replace(SETTINGS, preset=preset))
    assert asked == [(e, i) for e in range(2) for i in (0, 3, 4, 4)]  # and after the epoch


def test_too_few_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 training clips do not fill one batch of 4"):
        fit(Clips(3), Clips(5), CLASSES, SETTINGS, tmp_path / "run")
    with pytest.raises(UserError, match="no clips to validate on"):
        fit(Clips(4), Clips(0), CLASSES, SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["loss", "outputs"])
def test_divergence_stops_training_and_keeps_the_last_good_state(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights become NaN in epoch 1: before its first step, or after its last loss, where only
    validation notices."""
    step = SceneClassifier.training_step

    def poisoned(self: SceneClassifier, batch: Any, batch_idx: int) -> Tensor:
        bad = self.current_epoch == 1
        if bad and where == "loss":
            self.model.fc1.weight.data[0, 0] = torch.nan
        loss = step(self, batch, batch_idx)
        if bad and where == "outputs" and batch_idx == 1:
            self.model.fc1.weight.data[0, 0] = torch.nan
        return loss

    monkeypatch.setattr(SceneClassifier, "training_step", poisoned)
    with pytest.raises(UserError, match=rf"diverged in epoch 1: .*{where}.*last\.ckpt"):
        train(tmp_path)
    assert load_model(tmp_path / "last.ckpt").is_folded  # which checks that all is finite
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not (tmp_path / "folded.pt").exists()


def test_checkpoint_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def killed(source: Any, target: Any) -> None:
        raise OSError("power cut before the rename")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(OSError, match="power cut"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_step_is_the_presets(name: str) -> None:
    """Loss of a step against the recipe written out, with the same random numbers."""
    preset = replace(get_preset(name), dropout=0.0, time_width=8)
    module = SceneClassifier(Settings(preset), CLASSES)
    logmel, labels = torch.stack([x for x, _ in Clips(6)]), torch.tensor(Clips(6).labels)
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


def curve(dtype: torch.dtype, backend: str | None, optimizer: Optimizer) -> Tensor:
    """Losses of 50 training steps on 8 masked clips, 2 a step."""
    torch.manual_seed(0)
    model = Cnn6Sep(len(CLASSES), dropout=0.0).to(dtype)
    optimise = optimizer(model.parameters())
    generator = torch.Generator().manual_seed(1)
    clips = Clips(8)
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


def test_loss_curves_agree_in_float64() -> None:
    needs_kernels()

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-5)

    reference = curve(torch.float64, "reference", adamw)
    assert reference[-10:].mean() < 0.9 * reference[:10].mean()  # it learns, so the losses tell
    assert (curve(torch.float64, None, adamw) - reference).abs().max() < 1e-9


def test_loss_curves_agree_in_float32() -> None:
    """Rounding grows from step to step. How far is measured: reference layers in float32 against
    float64; fused layers in float32 may drift from reference layers in float32 as far, not farther.
    (SGD: AdamW's first steps divide rounding noise by itself where the gradient is nearly 0.)"""
    needs_kernels()

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=3e-3, momentum=0.9)

    reference = curve(torch.float32, "reference", sgd)
    rounding = (reference - curve(torch.float64, "reference", sgd)).abs().cummax(0).values
    drift = (curve(torch.float32, None, sgd) - reference).abs()
    floor = 100 * torch.finfo(torch.float32).eps  # before the growth starts, a step's own rounding
    assert rounding[-1] < 0.1  # or the test would show nothing
    assert (drift <= 3 * rounding + floor).all()
