"""Training on Lightning: one run, one folder.

    RUN/config.json     all settings, the data and the versions of the software
    RUN/last.ckpt       state after the last complete epoch, to resume from
    RUN/best.ckpt       state of the epoch with the lowest validation log loss
    RUN/folded.pt       best.ckpt folded, float16; written when training is over
    RUN/tensorboard/    losses, scores and learning rate (`tensorboard --logdir RUN`)

Everything random follows from the seed and the number of the epoch or step, so on one machine a run
that was interrupted and resumed ends with the same weights as one that was not.
"""

import io
import json
import logging
import platform
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, Dataset, Sampler

import fastsep
from asc import checkpoint
from asc.augment import mixup
from asc.device import Precision, float32_products
from asc.errors import UserError
from asc.evaluation import MAX_BATCH_BYTES, batch_size
from asc.files import atomic
from asc.losses import focal_loss, soft_cross_entropy
from asc.metrics import score
from asc.model import Cnn6Sep, SpecAugment
from asc.presets import Preset
from asc.report import write_json

Batch = tuple[Tensor, Tensor]  # log-mels (N, 1, T, 256), labels (N,)

# Steps from one look at the loss to the next: to look is to wait until the GPU is done.
LOOK_EVERY = {"cpu": 1, "cuda": 10}


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes, besides its data."""

    preset: Preset
    seed: int = 0
    precision: Precision = "float32"


class SceneClassifier(lightning.LightningModule):
    """`Cnn6Sep` with a preset's loss, augmentation and optimiser."""

    def __init__(self, settings: Settings, classes: Sequence[str]) -> None:
        super().__init__()
        preset = settings.preset
        self.settings, self.preset = settings, preset
        self.model = Cnn6Sep(len(classes), preset.dropout)
        self.model.classes = tuple(classes)
        self.model.specaugment = SpecAugment(preset.time_width, preset.freq_width, preset.stripes)
        self.loss = {"ce": soft_cross_entropy, "focal": focal_loss}[preset.loss]
        self.validated: list[Batch] = []  # logits and labels, on the device
        specaugment = asdict(self.model.specaugment)
        self.save_hyperparameters(
            {"classes": list(classes), "specaugment": specaugment, **asdict(settings)}
        )

    def configure_optimizers(self) -> Any:
        preset = self.preset
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=preset.lr, weight_decay=preset.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, preset.epochs, eta_min=preset.min_lr
        )
        return [optimizer], [schedule]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(_mixed(self.settings.seed, self.global_step))  # masks, MixUp, dropout
        logmel, labels = batch
        targets = one_hot(labels, len(self.model.classes)).to(logmel.dtype)
        if self.preset.mixup_alpha is not None:
            logmel, targets = mixup(logmel, targets, self.preset.mixup_alpha)
        n, _, frames, bins = logmel.shape
        stripes = self.model.specaugment.draw(n, frames, bins, device=logmel.device)
        halved = self.settings.precision == "bf16"
        with torch.autocast(logmel.device.type, torch.bfloat16, enabled=halved):
            logits = self.model(logmel, stripes)
        loss = self.loss(logits.to(logmel.dtype), targets)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if _looks(self.trainer, batch_idx) and not outputs["loss"].isfinite():
            raise Diverged(f"the loss is {outputs['loss'].item()} after step {self.global_step}")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logmel, labels = batch
        self.validated.append((self.model(logmel).double(), labels))

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(column).cpu() for column in zip(*self.validated, strict=True))
        self.validated.clear()
        if not logits.isfinite().all():
            raise Diverged(f"the network's outputs are not finite after step {self.global_step}")
        scores = score(logits.softmax(1), labels, self.model.classes, [None] * len(labels))
        self.log("val/log_loss", scores.log_loss_macro, prog_bar=True)
        self.log("val/accuracy", scores.accuracy_macro, prog_bar=True)


class Diverged(Exception):
    """Training produced NaN or infinity."""


class EpochShuffle(Sampler[int]):
    """A permutation that follows from the seed and the epoch's number; Lightning sets the epoch."""

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size, self.seed, self.epoch = size, seed, epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        yield from torch.randperm(self.size, generator=generator).tolist()

    def __len__(self) -> int:
        return self.size


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writes go through /tmp: a kill during the copy would cost the checkpoint."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic(Path(path)) as file:
            file.write(buffer.getbuffer())


class KeepBestAndLast(Checkpoint):
    """best.ckpt and last.ckpt, after every epoch's validation.

    Unlike ModelCheckpoint it still knows the best score after the run's folder was moved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.best = folder, float("inf")

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        log_loss = trainer.callback_metrics["val/log_loss"].item()
        if log_loss < self.best:
            self.best = log_loss
            trainer.save_checkpoint(self.folder / "best.ckpt")
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.best = state_dict["best"]


class Progress(RichProgressBar):
    """One line an epoch, with the three numbers that matter."""

    def __init__(self) -> None:
        super().__init__(leave=True, console_kwargs={"stderr": True})

    def configure_columns(self, trainer: lightning.Trainer) -> list[Any]:
        columns = super().configure_columns(trainer)
        return [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if _looks(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        names = {"train/loss_step": "loss", "val/log_loss": "val", "val/accuracy": "acc"}
        metrics = trainer.progress_bar_metrics
        return {names[key]: f"{metrics[key]:.2f}" for key in names if key in metrics}


def _looks(trainer: lightning.Trainer, batch_idx: int) -> bool:
    every = LOOK_EVERY[trainer.strategy.root_device.type]
    return batch_idx % every == 0 or trainer.is_last_batch


def check_new_run(out: Path) -> None:
    """UserError unless a run can start in this folder: new, or empty."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder for the run")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; choose a new folder, or resume the run in it")


def check_batch(clips: int, settings: Settings) -> None:
    """UserError unless there are enough clips for one batch (the last, partial one is dropped)."""
    if clips < settings.preset.batch_size:
        raise UserError(
            f"{clips} training clips do not fill one batch of {settings.preset.batch_size}: "
            "choose a smaller batch size"
        )


def read_settings(out: Path) -> Settings:
    """The settings of the run in a folder; UserError when there is none."""
    path = out / "config.json"
    if not path.is_file():
        raise UserError(f"{out}: there is no run to resume (no file config.json)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        precision = config.get("precision", "float32")  # older runs had no choice
        return Settings(Preset(**config["preset"]), config["seed"], precision)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not the configuration of a run, or is damaged") from error


def fit(
    train: Dataset[tuple[Tensor, int]],
    validation: Dataset[tuple[Tensor, int]],
    classes: Sequence[str],
    settings: Settings,
    out: Path,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    workers: int = 0,
    resume: bool = False,
    notes: dict[str, Any] | None = None,
) -> None:
    """Trains `Cnn6Sep` in a run folder (see the top of this file).

    Args:
        train, validation: items (logmel (1, T, 256) float32, label).
        classes: names of the labels.
        settings: preset, seed and precision; to resume, those of the run (`read_settings`).
        out: the run's folder; new or empty, unless resuming.
        device: "cpu" or "cuda".
        workers: processes that load data.
        resume: go on after last.ckpt; starts over when no epoch was completed.
        notes: more to write into config.json, such as where the data came from.

    Raises:
        UserError: the folder is taken, another run's settings, too few clips, or training
            diverged; checkpoints of complete epochs stay. KeyboardInterrupt: on Ctrl-C; likewise.
        OSError: the folder cannot be written.
    """
    preset = settings.preset
    clips, validation_clips = len(train), len(validation)  # type: ignore[arg-type]
    check_batch(clips, settings)
    if validation_clips == 0:
        raise UserError("there are no clips to validate on")
    config = {
        **asdict(settings),
        "classes": list(classes),
        "clips": {"train": clips, "validation": validation_clips},
        "device": device,
        "workers": workers,
        **(notes or {}),
        "versions": _versions(),
    }
    last = out / "last.ckpt"
    first_epoch = 0
    if resume:
        _check_same(out, settings, classes)
        if last.exists():
            first_epoch = 1 + checkpoint.read(last)["epoch"]
    else:
        check_new_run(out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", config)

    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    module = SceneClassifier(settings, classes)
    loading: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": device == "cuda",
    }
    frames = train[0][0].shape[1]
    sampler = EpochShuffle(clips, settings.seed, first_epoch)
    loaders = (
        DataLoader(train, preset.batch_size, sampler=sampler, drop_last=True, **loading),
        DataLoader(validation, batch_size(frames, MAX_BATCH_BYTES), **loading),
    )
    with _quiet(), float32_products(settings.precision):
        trainer = lightning.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=preset.epochs,
            logger=TensorBoardLogger(out, name=None, version="tensorboard"),
            callbacks=[KeepBestAndLast(out), Progress(), LearningRateMonitor("epoch")],
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=LOOK_EVERY[device],
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                module,
                *loaders,
                ckpt_path=last if first_epoch else None,
                weights_only=True,
            )
        except Diverged as error:
            kept = f"the last good state is in {last}" if last.exists() else "no epoch was complete"
            raise UserError(
                f"training diverged in epoch {module.current_epoch}: {error}; {kept}"
            ) from error
        except SystemExit as error:  # how Lightning passes Ctrl-C on
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
    best = checkpoint.load_model(out / "best.ckpt")
    checkpoint.save_folded(best, out / "folded.pt")


def _check_same(out: Path, settings: Settings, classes: Sequence[str]) -> None:
    if read_settings(out) != settings:
        raise UserError(f"{out}: the run has other settings than those asked for")
    theirs = json.loads((out / "config.json").read_text(encoding="utf-8")).get("classes")
    if theirs != list(classes):
        raise UserError(f"{out}: the run was started on data with other classes ({theirs})")


def _mixed(seed: int, number: int) -> int:
    """One seed of two numbers, such that neighbouring pairs share nothing."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def _versions() -> dict[str, str]:
    names = ("torch", "torchaudio", "lightning")
    return {
        "asc": fastsep.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's remarks on what it found (no GPU, one worker) off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
