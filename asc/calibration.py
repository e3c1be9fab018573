"""Calibration: the temperature that makes probabilities as sure as they are right."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asc.compute import Engine, Precision, send
from asc.data.clips import ClipList, relative_name
from asc.errors import UserError
from asc.metrics import brier_scores, score
from asc.prediction import (
    LogMelItems,
    Network,
    check,
    checked,
    computing,
    draw_masks,
    item_names,
    masked_logits,
    tta_name,
)
from asc.progress import counted

LOWEST, HIGHEST = 0.05, 20.0  # temperatures beyond are no network's that has learned something
_GRID = 120  # steps of 5 % between them; masks may make more than one minimum
_NARROW = 1e-7  # of log T, where the search ends


@dataclass(frozen=True)
class Quality:
    """How good probabilities are; the smaller the better.

    nll: negative log-likelihood, or log loss: the mean over clips of -log p(true class), in nats.
    brier: mean over clips of the sum over classes of (p - 1[true class])^2, from 0 to 2.
    ece: expected calibration error, see `asc.metrics`, from 0 to 1.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.
    """

    nll: float
    brier: float
    ece: float


def quality(probabilities: Tensor, labels: Sequence[int]) -> Quality:
    """Scores probabilities (N, classes) float64 against the clips' labels."""
    classes = [str(number) for number in range(probabilities.shape[1])]
    scores = score(probabilities, torch.tensor(labels), classes, [None] * len(labels))
    brier = brier_scores(probabilities.numpy(), np.array(labels))
    return Quality(scores.log_loss_samples, float(brier.mean()), scores.ece)


def mean_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Of logits (N, K, classes) under K masks: (N, classes), means of softmax(logits / T)."""
    return (logits / temperature).softmax(dim=2).mean(dim=1)


def fit_temperature(logits: Tensor, labels: Sequence[int]) -> float:
    """The temperature T for which the clips' log loss is smallest.

    Args:
        logits: (N, K, classes) float64, of N clips under K masks; K = 1 for unmasked ones. What is
            scored are the means over K of softmax(logits / T).
        labels: (N,), of at least two classes.

    Returns:
        T, to a millionth. Within 0.05 to 20.

    Raises:
        UserError: labels of a single class, or no smallest log loss between these temperatures.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
    """
    if len(set(labels)) < 2:
        raise UserError(
            "clips of a single class cannot tell how sure a network may be: calibrate on clips of "
            "all classes"
        )
    truth = torch.tensor(labels)[:, None, None].expand(-1, logits.shape[1], 1)

    def loss(log_temperature: float) -> float:
        log_p = (logits / math.exp(log_temperature)).log_softmax(dim=2).gather(2, truth)
        return -log_p.squeeze(2).logsumexp(dim=1).mean().item()  # but for log K

    low, high = math.log(LOWEST), math.log(HIGHEST)
    grid = torch.linspace(low, high, _GRID + 1, dtype=torch.float64).tolist()
    best = min(range(len(grid)), key=lambda i: loss(grid[i]))
    if best == 0:
        raise UserError(
            f"the clips' log loss is smallest at a temperature of {LOWEST:g} or less, as where "
            "every clip is classified right: calibrate on more clips, not those trained on"
        )
    if best == _GRID:
        raise UserError(
            f"the clips' log loss is smallest at a temperature of {HIGHEST:g} or more, as of a "
            "network that knows nothing of them: check that the data's classes are what it was "
            "trained on"
        )
    return math.exp(_golden(loss, grid[best - 1], grid[best + 1]))


def all_logits(
    model: Network,
    items: LogMelItems,
    *,
    tta: int = 0,
    seed: int = 0,
    engine: Engine = "shared",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
) -> Tensor:
    """Logits of every item, under each of the masks that `asc.prediction.probabilities` draws.

    Args:
        model, items, tta, seed, engine, device, precision: as there.

    Returns:
        (N, tta, classes) float64 on the CPU; (N, 1, classes) unmasked, where tta is 0.

    Raises:
        ValueError, UserError: as there.
    """
    check(model, tta, seed)
    names: Sequence[str | int] = item_names(items) or range(len(items))
    rows = []
    with (
        torch.inference_mode(),
        computing(model, device, precision) as (network, where),
        counted(f"calibration, {tta_name(tta)}", len(items)) as advance,
    ):
        for index, name in enumerate(names):
            logmel = send(items[index][0][None], where)
            if tta:
                frames, bins = logmel.shape[2:]
                drawn = draw_masks(network.specaugment, tta, frames, bins, seed, name)
                stripes = torch.cat(list(drawn))
                rows.append(masked_logits(network, logmel, stripes, engine=engine).cpu())
            else:
                rows.append(network(logmel).double().cpu())
            advance(1)
    logits = torch.stack(rows)
    checked(logits.flatten(1), items)
    return logits


def clip_names(clips: ClipList, root: Path) -> list[str]:
    """The clips' paths below the data set's folder, wherever that lies."""
    return [relative_name(clip.path, root) for clip in clips]


def refuse_fitted_on(model: Network, weights: Path, clips: ClipList, root: Path) -> None:
    """UserError if the network's temperature was fitted on some of the clips."""
    fitted = model.fitted_on
    if fitted is not None and fitted.shares(clip_names(clips, root)):
        raise UserError(
            f"{weights}: its temperature was fitted on {fitted.count} clips of the split "
            f"'{fitted.split}' and some of them would be scored now, which makes it look better "
            "calibrated than it is: score other clips, or say --allow-calibration-clips"
        )


def _golden(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum between two places has it, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > _NARROW:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return (low + high) / 2
