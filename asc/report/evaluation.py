"""What an evaluation found, as plain values: scores.json, and the content of the report.

weights, data, split, ...   what was evaluated, how
network                     `asc.checkpoint.fingerprint`
classes, temperature        of the network; temperature 1: not calibrated
run                         the settings it was trained with, null where nothing tells them
results                     for no masks, and for masks if there were any: "tta", the fields of
                            `asc.metrics.Scores`, "brier", "per_group" of devices, "per_city", and
                            "intervals" by name of a score
masks                       how many each clip had, under --tta auto
calibration                 for each way to probabilities: log loss, Brier score, ECE and its bins
bootstrap                   what the intervals are of
definitions                 of the scores, in words
complexity, versions        of the network, of the software
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

import fastsep
from asc.bootstrap import COVERAGE, RESAMPLES, score_intervals, units
from asc.checkpoint import fingerprint
from asc.complexity import size
from asc.data.clips import ClipList, city_from_name, location_from_name
from asc.metrics import (
    CLIP,
    ECE_BINS,
    FloatArray,
    IntArray,
    brier_scores,
    confidence_bins,
    expected_calibration_error,
    log_losses,
    score,
    without_nan,
)
from asc.model import Cnn6Sep
from asc.report.tables import printable
from asc.scoring import Evaluation
from asc.task import TRAINING_DEVICES

DEFINITIONS = {
    "log_loss_macro": "Mean over classes of the mean over their clips of -log(probability of the "
    f"true class), in nats, of probabilities clipped to [{CLIP:g}, 1 - {CLIP:g}].",
    "log_loss_samples": "The same, mean over clips: the negative log likelihood (NLL).",
    "accuracy_macro": "Mean over classes of the share of their clips whose largest probability is "
    "the true class's.",
    "accuracy_samples": "The same, over all clips.",
    "ece": f"Expected calibration error: in {ECE_BINS} equal bins of the largest probability, mean "
    "over clips of |accuracy - mean largest probability| of the clip's bin.",
    "brier": "Mean over clips of the sum over classes of (probability - truth)^2, from 0 to 2.",
}
_GROUPS = ("seen in training", "not seen in training", "real", "simulated")


def describe(
    settings: Mapping[str, Any], found: Evaluation, clips: ClipList, model: Cnn6Sep
) -> dict[str, Any]:
    """The content of scores.json, see the top of this file.

    Args:
        settings: what was evaluated and how; comes first.
        found: of the clips.
        clips: with all their labels.
        model: that was evaluated.
    """
    y = true_labels(clips)
    chosen = units([location_from_name(clip.path) for clip in clips])
    groups = [list(column) for column in zip(*map(device_groups, clips.devices), strict=True)]
    cities = [city_from_name(clip.path) for clip in clips]
    results = []
    for tta, scores in found.scores.items():
        p = found.probabilities[tta].numpy()

        def by(names: Sequence[str | None], p: FloatArray = p) -> dict[str, Any]:
            return score(p, y, model.classes, names).to_dict()["per_device"]

        per_group = by(groups[0]) | by(groups[1])
        intervals = score_intervals(p, y, chosen)
        if intervals:
            of_classes = zip(model.classes, intervals["per_class"], strict=True)
            intervals["per_class"] = dict(of_classes)
        results.append(
            {
                "tta": tta if isinstance(tta, int) else asdict(tta),
                **scores.to_dict(),
                "brier": float(brier_scores(p, y).mean()),
                "per_group": {name: per_group[name] for name in _GROUPS if name in per_group},
                "per_city": by(cities),
                "intervals": intervals,
            }
        )
    content = {
        **settings,
        "network": fingerprint(model),
        "classes": list(model.classes),
        "temperature": model.temperature,
        "run": model.run,
        "results": results,
        "calibration": list(_calibration(found, y, model.temperature)),
        "bootstrap": {
            "units": chosen.name,
            "count": chosen.count,
            "resamples": RESAMPLES,
            "coverage": COVERAGE,
            "seed": 0,
        },
        "definitions": DEFINITIONS,
        "complexity": asdict(size(model)),
        "versions": _versions(),
    }
    if any(not isinstance(tta, int) for tta in found.scores):
        names = [printable(clip.path) for clip in clips]
        content["masks"] = dict(zip(names, found.masks, strict=True))
    plain: dict[str, Any] = without_nan(content)
    return plain


def true_labels(clips: ClipList) -> IntArray:
    """(N,) of clips that all have one."""
    return np.array([label for label in clips.labels if label is not None], dtype=np.int64)


def device_groups(device: str | None) -> tuple[str | None, str | None]:
    """Of a device of the task: whether the training split has it, and whether it is real."""
    if device is None or not re.fullmatch(r"[a-z]|s\d+", device):
        return None, None
    seen = _GROUPS[0 if device in TRAINING_DEVICES else 1]
    return seen, _GROUPS[2 if len(device) == 1 else 3]


def _calibration(found: Evaluation, y: IntArray, temperature: float) -> Any:
    if temperature != 1:
        p = (found.logits * temperature).softmax(dim=1).numpy()
        yield {"tta": 0, "calibrated": False, **_reliability(p, y)}
    for tta, probabilities in found.probabilities.items():
        masks = tta if isinstance(tta, int) else asdict(tta)
        of_masks = _reliability(probabilities.numpy(), y)
        yield {"tta": masks, "calibrated": temperature != 1, **of_masks}


def _reliability(p: FloatArray, y: IntArray) -> dict[str, Any]:
    bins, hits, confidence = confidence_bins(p), p.argmax(axis=1) == y, p.max(axis=1)
    count, right, sure = (
        np.bincount(bins, weights=weights, minlength=ECE_BINS)
        for weights in (np.ones(len(y)), hits, confidence)
    )
    return {
        "log_loss_samples": float(log_losses(p, y).mean()),
        "brier": float(brier_scores(p, y).mean()),
        "ece": expected_calibration_error(p, y),
        "bins": [
            {
                "count": int(n),
                "accuracy": float(right[i] / n) if n else None,
                "confidence": float(sure[i] / n) if n else None,
            }
            for i, n in enumerate(count)
        ],
    }


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "torchaudio", "soundfile")
    return {
        "asc": fastsep.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
