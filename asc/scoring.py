"""The classes of clips and the scores of a data set, by one process or several."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asc.compute import Engine, Precision
from asc.metrics import Scores, score
from asc.prediction import (
    MAX_BATCH_BYTES,
    LogMelItems,
    Network,
    batch_size,
    check,
    checked,
    computing,
    masked,
    unmasked,
)
from asc.processes import Place, run, shares
from asc.progress import Advance, counted

if TYPE_CHECKING:  # readers of audio, which nothing here needs
    from asc.data import ClipList


@dataclass(frozen=True)
class Prediction:
    """A clip's class: probabilities by class, `label` the largest; logits of the unmasked clip."""

    label: str
    probabilities: dict[str, float]
    logits: list[float]


def predict(
    model: Network,
    items: LogMelItems,
    *,
    tta: int = 0,
    seed: int = 0,
    engine: Engine = "shared",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    devices: int = 1,
) -> list[Prediction]:
    """The class of every item, under its name; arguments and errors as of `score_clips`."""
    logits, p = _outputs(model, items, tta, seed, engine, device, precision, devices)
    return [
        Prediction(
            label=model.classes[row.index(max(row))],
            probabilities=dict(zip(model.classes, row, strict=True)),
            logits=outputs,
        )
        for row, outputs in zip(p.tolist(), logits.tolist(), strict=True)
    ]


def score_clips(
    model: Network,
    items: LogMelItems,
    clips: "ClipList",
    *,
    tta: int = 0,
    seed: int = 0,
    engine: Engine = "shared",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    devices: int = 1,
) -> dict[int, Scores]:
    """Scores of a network on a data set, by number of masks: without, and with tta if not 0.

    Args:
        items: log-mels of the clips.
        clips: with all their labels, which count the model's classes.
        model, tta, seed, engine, device, precision: as of `asc.prediction.probabilities`.
        devices: processes that share the clips, with a GPU each on "cuda", started here (see
            `asc.processes.run`). They find what one process finds.

    Raises:
        ValueError, UserError: as `probabilities` and `asc.metrics.score`; a process was killed.
        KeyboardInterrupt: on Ctrl-C; all processes are gone then.
    """
    labels = [label for label in clips.labels if label is not None]
    logits, p = _outputs(model, items, tta, seed, engine, device, precision, devices)
    found = {0: logits.softmax(dim=1), tta: p}
    return {masks: score(p, labels, model.classes, clips.devices) for masks, p in found.items()}


def _outputs(
    model: Network,
    items: LogMelItems,
    tta: int,
    seed: int,
    engine: Engine,
    device: torch.device | str | None,
    precision: Precision,
    devices: int,
) -> tuple[Tensor, Tensor]:
    """`asc.prediction`'s `clip_logits` and `probabilities`, both at once."""
    check(model, tta, seed)
    clips = len(items)
    count = max(1, min(devices, clips))
    # Batches are those of one process: last bits may depend on them on GPUs and in plain PyTorch.
    size = batch_size(items[0][0].shape[1], MAX_BATCH_BYTES) if clips else 1
    parts = zip(shares(clips, count, size), shares(clips if tta else 0, count), strict=True)
    work = [(model, items, *part, tta, seed, engine, device, precision) for part in parts]
    description = f"evaluation, {tta} masks a clip" if tta else "evaluation"
    with counted(description, clips * (1 + tta)) as advance:
        if count == 1:
            found = [_part(Place(), advance, *work[0])]
        else:
            found = run(_part, work, advance=advance)
    logits, p = (torch.from_numpy(np.concatenate(each)) for each in zip(*found, strict=True))
    checked(logits, items)
    return logits, checked(p, items) if tta else logits.softmax(dim=1)


@torch.inference_mode()
def _part(
    place: Place,
    advance: Advance,
    model: Network,
    items: LogMelItems,
    plain: range,
    augmented: range,
    tta: int,
    seed: int,
    engine: Engine,
    device: torch.device | str | None,
    precision: Precision,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One process's part of `_outputs`: of some clips the logits, of some the probabilities."""
    if device == "cuda" and place.count > 1:
        device = f"cuda:{place.local_rank}"

    def advance_masked(clips: int) -> None:
        advance(tta * clips)

    with computing(model, device, precision) as (network, where):
        logits = unmasked(network, items, plain, where, advance)
        p = masked(network, items, augmented, where, advance_masked, tta, seed, engine)
    return logits.cpu().numpy(), p.cpu().numpy()
