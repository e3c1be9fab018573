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
    Until,
    batch_size,
    check,
    checked,
    computing,
    masked,
    tta_name,
    unmasked,
)
from asc.processes import Place, run, shares
from asc.progress import Advance, counted

if TYPE_CHECKING:  # readers of audio, which nothing here needs
    from asc.data import ClipList


@dataclass(frozen=True)
class Prediction:
    """A clip's class: probabilities by class, `label` the largest; logits of the unmasked clip.

    masks: how many masked copies the probabilities are the mean of; 0: of none, of the clip.
    """

    label: str
    probabilities: dict[str, float]
    logits: list[float]
    masks: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network by `tta`: without masks, and with them if there were any.

    masks: how many each clip had.
    """

    scores: dict[int | Until, Scores]
    masks: list[int]


def predict(
    model: Network,
    items: LogMelItems,
    *,
    tta: int | Until = 0,
    seed: int = 0,
    engine: Engine = "shared",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    devices: int = 1,
) -> list[Prediction]:
    """The class of every item, under its name; arguments and errors as of `score_clips`."""
    logits, p, used = _outputs(model, items, tta, seed, engine, device, precision, devices)
    return [
        Prediction(
            label=model.classes[row.index(max(row))],
            probabilities=dict(zip(model.classes, row, strict=True)),
            logits=outputs,
            masks=masks,
        )
        for row, outputs, masks in zip(p.tolist(), logits.tolist(), used, strict=True)
    ]


def score_clips(
    model: Network,
    items: LogMelItems,
    clips: "ClipList",
    *,
    tta: int | Until = 0,
    seed: int = 0,
    engine: Engine = "shared",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    devices: int = 1,
) -> Evaluation:
    """Scores of a network on a data set, without masks, and with tta if not 0.

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
    logits, p, used = _outputs(model, items, tta, seed, engine, device, precision, devices)
    found: dict[int | Until, Tensor] = {0: logits.softmax(dim=1), tta: p}
    return Evaluation(
        {masks: score(p, labels, model.classes, clips.devices) for masks, p in found.items()}, used
    )


def _outputs(
    model: Network,
    items: LogMelItems,
    tta: int | Until,
    seed: int,
    engine: Engine,
    device: torch.device | str | None,
    precision: Precision,
    devices: int,
) -> tuple[Tensor, Tensor, list[int]]:
    """`asc.prediction`'s `clip_logits` and `probabilities`, both at once, and numbers of masks."""
    check(model, tta, seed)
    clips = len(items)
    count = max(1, min(devices, clips))
    # Batches are those of one process: last bits may depend on them on GPUs and in plain PyTorch.
    size = batch_size(items[0][0].shape[1], MAX_BATCH_BYTES) if clips else 1
    parts = zip(shares(clips, count, size), shares(clips if tta else 0, count), strict=True)
    work = [(model, items, *part, tta, seed, engine, device, precision) for part in parts]
    description = f"evaluation, {tta_name(tta)}" if tta else "evaluation"
    with counted(description, clips * (1 + _weight(tta))) as advance:
        if count == 1:
            found = [_part(Place(), advance, *work[0])]
        else:
            found = run(_part, work, advance=advance)
    logits, p, used = (torch.from_numpy(np.concatenate(each)) for each in zip(*found, strict=True))
    checked(logits, items)
    if not tta:
        return logits, logits.softmax(dim=1), [0] * clips
    return logits, checked(p, items), used.tolist()


def _weight(tta: int | Until) -> int:
    """How long a clip's masked copies take, for the progress bar, where it itself takes 1."""
    return 10 if isinstance(tta, Until) else tta


@torch.inference_mode()
def _part(
    place: Place,
    advance: Advance,
    model: Network,
    items: LogMelItems,
    plain: range,
    augmented: range,
    tta: int | Until,
    seed: int,
    engine: Engine,
    device: torch.device | str | None,
    precision: Precision,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """One process's part of `_outputs`: of some clips the logits, of some the probabilities."""
    if device == "cuda" and place.count > 1:
        device = f"cuda:{place.local_rank}"

    def advance_masked(clips: int) -> None:
        advance(_weight(tta) * clips)

    with computing(model, device, precision) as (network, where):
        logits = unmasked(network, items, plain, where, advance)
        p, used = masked(network, items, augmented, where, advance_masked, tta, seed, engine)
    return logits.cpu().numpy(), p.cpu().numpy(), used.numpy()
