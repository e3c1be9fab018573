"""What is trained: the network with its loss, augmentation and optimiser."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import one_hot

from asc.augment import SpecAugment, mixup
from asc.losses import focal_loss, soft_cross_entropy
from asc.metrics import score
from asc.model import Cnn6Sep
from asc.processes import Place
from asc.seeds import mixed_seed
from asc.training.layers import Forward, in_torch_layers
from asc.training.settings import Settings

Batch = tuple[Tensor, Tensor]  # log-mels (N, 1, T, 256), labels (N,)

# Steps from one look at the loss to the next: to look is to wait until the GPU is done.
LOOK_EVERY = {"cpu": 1, "cuda": 10}


class Diverged(Exception):
    """Training produced NaN or infinity."""


class SceneClassifier(lightning.LightningModule):
    """`Cnn6Sep` with a preset's loss, augmentation and optimiser.

    Of several processes each has its share of every batch, in order, under the masks that the clips
    would have in one process. MixUp mixes within a share, with one weight for all shares; dropout
    is drawn by each process for itself.
    """

    def __init__(
        self, settings: Settings, classes: Sequence[str], place: Place | None = None
    ) -> None:
        super().__init__()
        self.place = place or Place()
        preset = settings.preset
        self.settings, self.preset = settings, preset
        self.model = Cnn6Sep(len(classes), preset.dropout)
        self.model.classes = tuple(classes)
        self.model.specaugment = SpecAugment(preset.time_width, preset.freq_width, preset.stripes)
        self.loss = {"ce": soft_cross_entropy, "focal": focal_loss}[preset.loss]
        self.in_torch_layers: Forward | None = None
        self.validated: list[Batch] = []  # logits and labels, on the device
        specaugment = asdict(self.model.specaugment)
        self.save_hyperparameters(
            {"classes": list(classes), "specaugment": specaugment, **asdict(settings)}
        )

    def forward(self, logmel: Tensor, stripes: Tensor | None = None) -> Tensor:
        if self.settings.layers == "fastsep":
            return self.model(logmel, stripes)
        if self.in_torch_layers is None:  # not before the model has the layers it trains with
            self.in_torch_layers = in_torch_layers(self.model)
        return self.in_torch_layers(logmel, stripes)

    def configure_optimizers(self) -> Any:
        preset = self.preset
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=preset.lr, weight_decay=preset.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, preset.epochs, eta_min=preset.min_lr
        )
        return [optimizer], [schedule]

    def on_train_start(self) -> None:
        for config in self.trainer.lr_scheduler_configs:  # resumed: with the epochs there were
            config.scheduler.T_max = self.preset.epochs  # type: ignore[union-attr]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(mixed_seed(self.settings.seed, self.global_step))  # masks, MixUp, dropout
        logmel, labels = batch
        targets = one_hot(labels, len(self.model.classes)).to(logmel.dtype)
        if self.preset.mixup_alpha is not None:
            logmel, targets = mixup(logmel, targets, self.preset.mixup_alpha)
        n, _, frames, bins = logmel.shape
        rank, count = self.place.rank, self.place.count
        stripes = self.model.specaugment.draw(n * count, frames, bins, device=logmel.device)
        stripes = stripes[rank * n : (rank + 1) * n]
        if count > 1:  # dropout
            torch.manual_seed(mixed_seed(mixed_seed(self.settings.seed, self.global_step), rank))
        halved = self.settings.precision == "bf16"
        with torch.autocast(logmel.device.type, torch.bfloat16, enabled=halved):
            logits = self.forward(logmel, stripes)
        loss = self.loss(logits.to(logmel.dtype), targets)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if looks(self.trainer, batch_idx) and not outputs["loss"].isfinite():
            raise Diverged(f"the loss is {outputs['loss'].item()} after step {self.global_step}")

    def on_validation_start(self) -> None:
        if self.place.count > 1:  # as the checkpoint will hold them
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logmel, labels = batch
        self.validated.append((self.forward(logmel).double(), labels))

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(column).cpu() for column in zip(*self.validated, strict=True))
        self.validated.clear()
        if self.place.count > 1:
            logits, labels = self._gathered(logits), self._gathered(labels)
        if not logits.isfinite().all():
            raise Diverged(f"the network's outputs are not finite after step {self.global_step}")
        scores = score(logits.softmax(1), labels, self.model.classes, [None] * len(labels))
        self.log("val/log_loss", scores.log_loss_macro, prog_bar=True)
        self.log("val/accuracy", scores.accuracy_macro, prog_bar=True)

    def _gathered(self, rows: Tensor) -> Tensor:
        """The rows of all clips in order, of each process's as `DistributedSampler` deals them."""
        dealt = self.all_gather(rows.to(self.device))  # (processes, rows, ...)
        assert isinstance(dealt, Tensor)
        loader: Any = self.trainer.val_dataloaders
        in_order = dealt.cpu().transpose(0, 1).flatten(0, 1)
        return in_order[: len(loader.dataset)]  # without the clips that even out the shares


def looks(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether the loss of this step is looked at."""
    every = LOOK_EVERY[trainer.strategy.root_device.type]
    return batch_idx % every == 0 or trainer.is_last_batch
