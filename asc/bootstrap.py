"""How sure a score is: the bootstrap, over recording locations where they are known.

Clips of one location are alike, so a test set of few locations says less than its number of clips
suggests. Resamples therefore take whole locations, each with all its clips.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; of clusters: Field and
Welsh, "Bootstrapping clustered data", 2007.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asc.metrics import (
    ECE_BINS,
    FloatArray,
    IntArray,
    brier_scores,
    confidence_bins,
    log_losses,
)

RESAMPLES = 2000
COVERAGE = 0.95
_AT_ONCE = 2**22  # drawn numbers, 8 bytes each

Interval = tuple[float, float]


@dataclass(frozen=True)
class Units:
    """What is resampled: the number of every clip's unit, how many there are, and their name."""

    of_clip: IntArray
    count: int
    name: str


def units(locations: Sequence[str | None]) -> Units:
    """The clips' recording locations, or where one or more are not known, the clips.

    Args:
        locations: of every clip.
    """
    if None in locations:
        return Units(np.arange(len(locations)), len(locations), "clips")
    names, of_clip = np.unique(np.array(locations, dtype=object), return_inverse=True)
    return Units(of_clip.astype(np.int64), len(names), "recording locations")


def resampled_sums(
    values: FloatArray, chosen: Units, resamples: int = RESAMPLES, seed: int = 0
) -> FloatArray:
    """Sums over the clips of each resample.

    The resamples follow from the number of units, `resamples` and `seed`: two systems on the same
    clips are compared on the same resamples.

    Args:
        values: (N, M), M numbers a clip.
        chosen: what is drawn, with replacement, as many as there are.

    Returns:
        (resamples, M).
    """
    of_unit = np.zeros((chosen.count, values.shape[1]))
    np.add.at(of_unit, chosen.of_clip, values)
    generator = np.random.default_rng(seed)
    sums, size = np.empty((resamples, values.shape[1])), max(1, _AT_ONCE // chosen.count)
    for start in range(0, resamples, size):
        n = min(size, resamples - start)
        drawn = generator.integers(chosen.count, size=(n, chosen.count))
        drawn += chosen.count * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * chosen.count).reshape(n, chosen.count)
        sums[start : start + n] = times.astype(np.float64) @ of_unit
    return sums


def interval(values: FloatArray) -> Interval:
    """The percentile interval of resampled scores; resamples without the score (NaN) left out."""
    low, high = np.nanquantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def class_means(values: FloatArray, y: IntArray, classes: int) -> tuple[FloatArray, FloatArray]:
    """What the mean of a value over the clips of each class is made of: sums and numbers.

    Args:
        values: (N,), one a clip.
        y: (N,) labels.

    Returns:
        twice (N, classes), columns for `resampled_sums`.
    """
    truth = np.eye(classes)[y]
    return values[:, None] * truth, truth


def score_intervals(p: FloatArray, y: IntArray, chosen: Units) -> dict[str, Any]:
    """Intervals of a system's scores, by their names in `asc.metrics.Scores`; and of Brier's score.

    Args:
        p: (N, K) probabilities.
        y: (N,) labels.
        chosen: what is resampled.

    Returns:
        An interval a score; "per_class": log loss and accuracy of each class, None where it has no
        clips. Empty for a single unit, from which nothing can be resampled.
    """
    if chosen.count < 2:
        return {}
    classes = p.shape[1]
    hits = (p.argmax(axis=1) == y).astype(np.float64)
    losses, truth = class_means(log_losses(p, y), y, classes)
    rights, _ = class_means(hits, y, classes)
    gaps = (hits - p.max(axis=1))[:, None] * np.eye(ECE_BINS)[confidence_bins(p)]
    columns = losses, rights, truth, gaps, brier_scores(p, y)[:, None]
    sums = resampled_sums(np.hstack(columns), chosen)
    ends = np.cumsum([column.shape[1] for column in columns])[:-1]
    losses, rights, truth, gaps, brier = np.hsplit(sums, ends)
    clips = truth.sum(axis=1)
    by_class = ratio(losses, truth), ratio(rights, truth)
    present = np.flatnonzero(np.bincount(y, minlength=classes))
    return {
        "log_loss_macro": interval(np.nanmean(by_class[0][:, present], axis=1)),
        "log_loss_samples": interval(losses.sum(axis=1) / clips),
        "accuracy_macro": interval(np.nanmean(by_class[1][:, present], axis=1)),
        "accuracy_samples": interval(rights.sum(axis=1) / clips),
        "ece": interval(np.abs(gaps).sum(axis=1) / clips),
        "brier": interval(brier[:, 0] / clips),
        "per_class": [
            {"log_loss": interval(by_class[0][:, k]), "accuracy": interval(by_class[1][:, k])}
            if k in present
            else None
            for k in range(classes)
        ],
    }


def ratio(sums: FloatArray, counts: NDArray[np.float64]) -> FloatArray:
    """Sums / counts, NaN where there are none."""
    with np.errstate(invalid="ignore"):
        quotient: FloatArray = sums / counts
    return quotient
