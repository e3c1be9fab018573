"""What Lightning calls back during a run: checkpoints and the progress bar."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn

from asc import checkpoint
from asc.files import atomic
from asc.training.module import looks


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writes go through /tmp: a kill during the copy would cost the checkpoint."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic(Path(path)) as file:
            file.write(buffer.getbuffer())


@dataclass(frozen=True)
class Validated:
    """What validation said about an epoch, counted from 1."""

    epoch: int
    log_loss: float
    accuracy: float


class KeepBestAndLast(Checkpoint):
    """best.ckpt and last.ckpt, after every epoch's validation; each knows its own scores.

    Unlike ModelCheckpoint it still knows the best score after the run's folder was moved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.best = folder, float("inf")
        self.validated: Validated | None = None

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        log_loss, accuracy = (
            trainer.callback_metrics[f"val/{name}"].item() for name in ("log_loss", "accuracy")
        )
        self.validated = Validated(trainer.current_epoch + 1, log_loss, accuracy)
        if log_loss < self.best:
            self.best = log_loss
            trainer.save_checkpoint(self.folder / "best.ckpt")
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "validated": self.validated and asdict(self.validated)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def validated(path: Path) -> Validated | None:
    """The scores that a checkpoint of a run holds; older ones hold none."""
    state = checkpoint.read(path)["callbacks"][KeepBestAndLast.__name__]
    return Validated(**state["validated"]) if state.get("validated") else None


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
        if looks(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        names = {"train/loss_step": "loss", "val/log_loss": "val", "val/accuracy": "acc"}
        metrics = trainer.progress_bar_metrics
        return {names[key]: f"{metrics[key]:.2f}" for key in names if key in metrics}
