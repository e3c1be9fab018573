"""A run in one picture: how it learned, and what it takes for what."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asc.metrics import IntArray


def draw_run(run: Path, confusion: IntArray, classes: Sequence[str], target: Path) -> None:
    """Losses by epoch, from the run's TensorBoard logs, beside the confusion matrix; an image file.

    Args:
        run: the run's folder.
        confusion: (K, K) counts, see `asc.metrics.confusion_matrix`.
        classes: K names.
        target: the file; its suffix chooses the format.
    """
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    losses, matrix = figure.subplots(1, 2)
    _draw_losses(losses, run / "tensorboard")
    _draw_confusion(matrix, confusion, classes)
    figure.savefig(target, dpi=120)


def _draw_losses(axes: Axes, logs: Path) -> None:
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})  # 0: all of them
    events.Reload()
    for tag, label in (
        ("train/loss_epoch", "training loss, with augmentation"),
        ("val/log_loss", "log loss on clips held out"),
    ):
        values = [event.value for event in events.Scalars(tag)]
        axes.plot(np.arange(1, len(values) + 1), values, marker="o", label=label)
    axes.set(xlabel="epoch", ylabel="nats", title="Training")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_confusion(axes: Axes, confusion: IntArray, classes: Sequence[str]) -> None:
    axes.imshow(confusion, cmap="Blues")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            dark = count > confusion.max() / 2
            axes.text(column, row, str(count), ha="center", va="center",
                      color="white" if dark else "black")  # fmt: skip
    names = [name.replace("$", r"\$") for name in classes]  # which would begin a formula
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title="Clips held out")
