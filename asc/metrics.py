"""Scores of the DCASE 2021 Task 1A challenge: log loss, accuracy and calibration."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from asc.task import DEVICES

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

CLIP = 1e-15  # as sklearn.metrics.log_loss, used by the challenge's baseline
ECE_BINS = 15


@dataclass(frozen=True)
class ClassScore:
    """One class: number of clips, their mean log loss (nats) and accuracy; NaN without clips."""

    count: int
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class DeviceScore:
    """One device; macro values and `accuracy` are averaged over the classes it has clips of."""

    count: int
    log_loss_macro: float
    log_loss_samples: float
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """All scores of one evaluation. Log losses are in nats, accuracies and ECE in [0, 1].

    `*_macro` averages over classes (classes without clips left out), `*_samples` over clips.
    The challenge's baseline prints the log loss over clips and the accuracy over classes.
    """

    count: int
    log_loss_macro: float
    log_loss_samples: float
    accuracy_macro: float
    accuracy_samples: float
    ece: float  # expected calibration error, 15 equal-width bins of the top probability
    per_class: dict[str, ClassScore]
    per_device: dict[str, DeviceScore]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict for JSON; NaN (a class without clips) becomes None."""
        return without_nan(asdict(self))


def score(
    probabilities: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    classes: Sequence[str],
    devices: Sequence[str | None],
) -> Scores:
    """Scores class probabilities against labels, in float64.

    For the log loss, probabilities are clipped to [1e-15, 1 - 1e-15] and each row is then divided
    by its sum, as the challenge's baseline does through scikit-learn.

    Args:
        probabilities: (N, K), rows that sum to one (to 1e-3: half-precision values are fine).
        labels: (N,) integers in [0, K).
        classes: K names, in the order of the columns.
        devices: N device names; clips with None are left out of the table per device.

    Raises:
        ValueError: shapes that do not fit, no clips, labels out of range, probabilities that are
            not finite, outside [0, 1], or do not sum to one.
        TypeError: labels that are not integers.
    """
    p, y = _as_array(probabilities).astype(np.float64), _as_array(labels)
    _check(p, y, classes, devices)
    y = y.astype(np.int64)

    losses = log_losses(p, y)
    hits = (p.argmax(axis=1) == y).astype(np.float64)

    names = [device for device in DEVICES if device in devices]
    names += sorted({device for device in devices if device is not None} - set(DEVICES))
    device_of = np.array([device or "" for device in devices])

    def device_score(mask: NDArray[np.bool_]) -> DeviceScore:
        return DeviceScore(
            count=int(mask.sum()),
            log_loss_macro=_class_average(losses[mask], y[mask]),
            log_loss_samples=float(losses[mask].mean()),
            accuracy=_class_average(hits[mask], y[mask]),
        )

    return Scores(
        count=len(y),
        log_loss_macro=_class_average(losses, y),
        log_loss_samples=float(losses.mean()),
        accuracy_macro=_class_average(hits, y),
        accuracy_samples=float(hits.mean()),
        ece=expected_calibration_error(p, y),
        per_class={
            name: ClassScore(int((y == k).sum()), _mean(losses[y == k]), _mean(hits[y == k]))
            for k, name in enumerate(classes)
        },
        per_device={name: device_score(device_of == name) for name in names},
    )


def confusion_matrix(probabilities: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> IntArray:
    """How many clips of each class (rows) were taken for each class (columns).

    Args:
        probabilities, labels: as of `score`.

    Returns:
        (K, K).
    """
    # Takes a second to import.
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    p, y = torch.as_tensor(probabilities), torch.as_tensor(labels)
    counts: IntArray = multiclass_confusion_matrix(p, y, p.shape[1]).numpy()
    return counts


def log_losses(p: FloatArray, y: IntArray) -> FloatArray:
    """Every clip's log loss in nats, of clipped probabilities, see `score`.

    Args:
        p: (N, K) probabilities.
        y: (N,) labels.
    """
    clipped = np.clip(p, CLIP, 1 - CLIP)
    clipped /= clipped.sum(axis=1, keepdims=True)
    losses: FloatArray = -np.log(clipped[np.arange(len(y)), y])
    return losses


def brier_scores(p: FloatArray, y: IntArray) -> FloatArray:
    """Every clip's Brier score: sum over classes of (probability - truth)^2, in [0, 2].

    Args:
        p: (N, K) probabilities.
        y: (N,) labels.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    truth = np.eye(p.shape[1])[y]
    scores: FloatArray = np.square(p - truth).sum(axis=1)
    return scores


def confidence_bins(p: FloatArray, bins: int = ECE_BINS) -> IntArray:
    """Every clip's confidence bin: i for a top probability in (i / bins, (i + 1) / bins]."""
    index: IntArray = np.ceil(p.max(axis=1) * bins).astype(np.int64) - 1
    return np.clip(index, 0, bins - 1)


def expected_calibration_error(p: FloatArray, y: IntArray, bins: int = ECE_BINS) -> float:
    """Mean over clips of |accuracy - confidence| of the clip's confidence bin.

    Confidence is the top probability; bins are (i / bins, (i + 1) / bins], as in the source.
    (torchmetrics' are [i / bins, (i + 1) / bins).)

    Args:
        p: (N, K) probabilities.
        y: (N,) labels.
        bins: how many.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 3.
    """
    confidence = p.max(axis=1)
    hits = p.argmax(axis=1) == y
    gap = np.bincount(
        confidence_bins(p, bins), weights=hits - confidence, minlength=bins
    )  # count * (acc - conf)
    return float(np.abs(gap).sum() / len(y))


def _as_array(values: Tensor | ArrayLike) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _check(
    p: FloatArray, y: NDArray[Any], classes: Sequence[str], devices: Sequence[str | None]
) -> None:
    if p.ndim != 2 or p.shape[1] != len(classes):
        raise ValueError(f"probabilities must be (N, {len(classes)}), got {p.shape}")
    if y.shape != (p.shape[0],) or len(devices) != p.shape[0]:
        raise ValueError(
            f"probabilities, labels and devices disagree: {p.shape[0]}, {y.shape}, {len(devices)}"
        )
    if p.shape[0] == 0:
        raise ValueError("there are no clips to score")
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {y.dtype}")
    if y.min() < 0 or y.max() >= len(classes):
        raise ValueError(f"labels must be in [0, {len(classes)}), got {y.min()} to {y.max()}")
    if not np.isfinite(p).all():
        raise ValueError("probabilities must be finite")
    if p.min() < 0 or p.max() > 1 + 1e-3 or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities must be in [0, 1] with rows that sum to one")


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _class_average(values: FloatArray, y: IntArray) -> float:
    """Average within each class, then over the classes that are there."""
    return float(np.mean([values[y == k].mean() for k in np.unique(y)]))


def without_nan(value: Any) -> Any:
    """Plain values for JSON: None in place of every NaN, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
