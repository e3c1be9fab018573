"""`python -m benchmarks.training_loop`: what the loop around a training step costs.

Trains the same batches of 32 twice, in `asc.training.run.fit` and in a bare loop of forward, loss,
backward and optimiser, and prints the difference a step: Lightning, logging, progress bar, masks.
That does not depend on what a step computes, so here it computes next to nothing: clips of 16
frames, and pooling in place of the blocks. What grows with the clips, to gather and to mix a batch
of whole ones, and the optimisers on the network's real parameters are timed apart.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import TensorDataset

from asc.augment import mixup
from asc.errors import UserError
from asc.losses import soft_cross_entropy
from asc.model import WIDTHS, Cnn6Sep
from asc.processes import Place
from asc.task import FRAMES, N_MELS, SCENES
from asc.training import module, run
from asc.training.settings import Settings, get_preset

BATCH, STEPS, EPOCHS, FEW = 32, 30, 4, 16


class Pooled(torch.nn.Module):
    """In place of the blocks."""

    def forward(
        self, x: Tensor, affine: tuple[Tensor, Tensor] | None = None, stripes: Tensor | None = None
    ) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 16).expand(-1, WIDTHS[-1], -1, -1)


def network() -> Cnn6Sep:
    model = Cnn6Sep()
    model.blocks = Pooled()  # type: ignore[assignment]
    return model


class Timed(module.SceneClassifier):
    """Notes when the first and the last step of each epoch begin."""

    begun: list[float] = []  # noqa: RUF012

    def __init__(
        self, settings: Settings, classes: Sequence[str], place: Place | None = None
    ) -> None:
        super().__init__(settings, classes, place)
        self.model.blocks = Pooled()  # type: ignore[assignment]

    def training_step(self, batch: module.Batch, batch_idx: int) -> Tensor:
        if batch_idx in (0, STEPS - 1):
            Timed.begun.append(time.perf_counter())
        return super().training_step(batch, batch_idx)


def trainer_step(x: Tensor, labels: Tensor) -> float:
    """Seconds a step in asc's trainer, the best epoch's mean."""
    preset = replace(get_preset("ce_mu_tta"), epochs=EPOCHS, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        items: Any = TensorDataset(x, labels)
        run.SceneClassifier = Timed  # type: ignore[misc]
        with suppress(UserError):  # what is left of the network is none to be folded
            run.fit(items, items, SCENES, Settings(preset), Path(folder))
    starts, ends = Timed.begun[::2], Timed.begun[1::2]
    return min(b - a for a, b in zip(starts, ends, strict=True)) / (STEPS - 1)


def bare_step(x: Tensor, labels: Tensor) -> float:
    """Seconds a step in a loop of nothing else, the best epoch's mean."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    targets = one_hot(labels, len(SCENES)).float()

    def epoch() -> None:
        for batch, wanted in zip(x.split(BATCH), targets.split(BATCH), strict=True):
            optimizer.zero_grad()
            soft_cross_entropy(model(batch), wanted).backward()
            optimizer.step()

    return best(epoch, EPOCHS) / STEPS


def best(function: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    x = torch.randn(BATCH * STEPS, 1, FEW, N_MELS)
    labels = torch.arange(len(x)) % len(SCENES)
    bare, trainer = bare_step(x, labels), trainer_step(x, labels)
    more = trainer - bare
    print(f"a step of {BATCH} clips of {FEW} frames: bare loop {1000 * bare:.1f} ms, "
          f"asc's trainer {1000 * trainer:.1f} ms: {1000 * more:.1f} ms more")  # fmt: skip
    clips = torch.randn(10 * BATCH, 1, FRAMES, N_MELS)
    chosen = torch.randperm(len(clips))[:BATCH]
    gather = best(lambda: clips.index_select(0, chosen), 20)
    batch, targets = clips[:BATCH], torch.zeros(BATCH, len(SCENES))
    mixed = best(lambda: mixup(batch, targets, 0.2), 20)
    print(f"a batch of whole clips: gathered in {1000 * gather:.1f} ms, mixed in "
          f"{1000 * mixed:.1f} ms")  # fmt: skip
    for kind in ("fused", "foreach", None):
        weights = [torch.nn.Parameter(p.detach().clone()) for p in Cnn6Sep().parameters()]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        options: Any = {kind: True} if kind else {}
        optimizer = torch.optim.AdamW(weights, **options)
        print(f"AdamW, {kind or 'default'}: {1000 * best(optimizer.step, 50):.2f} ms a step")


if __name__ == "__main__":
    main()
