"""The report of an evaluation: what its page says, in the order of the page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asc.complexity import parameter_table
from asc.data.clips import ClipList, relative_name
from asc.metrics import FloatArray, IntArray, confusion_matrix, log_losses
from asc.model import Cnn6Sep
from asc.report import charts
from asc.report.evaluation import true_labels
from asc.report.html import render
from asc.report.mistakes import names_of, worst_mistakes
from asc.report.tables import printable, system_name
from asc.scoring import Evaluation

SCORES = {  # in tables: (name, kind)
    "log_loss_macro": ("log loss, mean over classes", "nats"),
    "log_loss_samples": ("log loss, mean over clips", "nats"),
    "accuracy_macro": ("accuracy, mean over classes", "percent"),
    "accuracy_samples": ("accuracy, mean over clips", "percent"),
    "ece": ("expected calibration error", "percent"),
    "brier": ("Brier score", "nats"),
}
_HEADLINES = {
    "log_loss_macro": "Log loss",
    "accuracy_macro": "Accuracy",
    "ece": "Calibration error",
    "brier": "Brier score",
}


def report_page(
    content: Mapping[str, Any],
    found: Evaluation,
    clips: ClipList,
    root: Path,
    model: Cnn6Sep,
    *,
    audio: bool = True,
) -> str:
    """The page, one file without references to others.

    Args:
        content: of `asc.report.evaluation.describe`.
        found, clips, model: that it describes.
        root: the data set's folder.
        audio: whether mistakes can be listened to.

    Raises:
        UserError: a clip can no longer be read.
    """
    names = [system_name(tta) for tta in found.scores]
    results = dict(zip(names, content["results"], strict=True))
    p = list(found.probabilities.values())[-1]
    y = true_labels(clips)
    ways = {_way(part, content["temperature"]): part for part in content["calibration"]}
    return render(
        "report.html",
        **{key: content[key] for key in ("bootstrap", "definitions", "versions", "complexity")},
        title=Path(content["weights"]).name,
        settings=list(_settings(content, names)),
        run=list(_flat(content["run"] or {})),
        clips=len(clips),
        of=clips.of,
        data=content["data"],
        split=content["split"],
        classes=len(model.classes),
        names=names,
        headlines=list(_headlines(results)),
        overall=[
            (label, kind, [(r[key], r["intervals"].get(key)) for r in results.values()])
            for key, (label, kind) in SCORES.items()
        ],
        class_chart=_class_chart(results),
        class_rows=_rows(results, "per_class", "log_loss"),
        groups=_rows(results, "per_group", "log_loss_macro"),
        devices=_rows(results, "per_device", "log_loss_macro"),
        cities=_rows(results, "per_city", "log_loss_macro"),
        confusion=charts.confusion(confusion_matrix(p, y), list(map(printable, model.classes))),
        reliability=charts.reliability({name: part["bins"] for name, part in ways.items()}),
        calibration=ways,
        changes=_changes(found, y) if len(names) > 1 else None,
        mistakes=list(_mistakes(p.numpy(), y, clips, root, model.classes, audio)),
        wrong=int((p.numpy().argmax(axis=1) != y).sum()),
        layers=parameter_table(model),
        labels={key: label for key, (label, _) in SCORES.items()},
    )


def _settings(content: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """How it was evaluated: what of the content is a single value."""
    for name, value in content.items():
        if isinstance(value, (str, int, float)) and name != "temperature":
            yield name, value
    yield "masks a clip", names[-1]
    yield "temperature", f"{content['temperature']:.4g}"


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a run, those of its preset among the others."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield name, value.get("name", "")
            yield from ((key, item) for key, item in value.items() if key != "name")
        else:
            yield name, value


def _headlines(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    *before, last = results.items()
    for key, title in _HEADLINES.items():
        yield {
            "title": title,
            "kind": SCORES[key][1],
            "value": last[1][key],
            "interval": last[1]["intervals"].get(key),
            "others": [(name, result[key]) for name, result in before],
        }


def _rows(results: Mapping[str, Any], part: str, loss: str) -> list[tuple[str, int, list[Any]]]:
    """Of every class, device, ...: name, clips and (log loss, accuracy) of each result."""
    tables = [result[part] for result in results.values()]
    return [
        (name, row["count"], [(table[name][loss], table[name]["accuracy"]) for table in tables])
        for name, row in tables[0].items()
    ]


def _class_chart(results: Mapping[str, Any]) -> str:
    first = next(iter(results.values()))["per_class"]
    present = [name for name, row in first.items() if row["count"]]
    ways = {}
    for way, result in results.items():
        intervals = result["intervals"].get("per_class", {})
        ways[way] = [
            (result["per_class"][name]["log_loss"], (intervals.get(name) or {}).get("log_loss"))
            for name in present
        ]
    return charts.class_scores(list(map(printable, present)), ways)


def _way(part: Mapping[str, Any], temperature: float) -> str:
    """What to call a way to probabilities."""
    name = system_name(part["tta"])
    if temperature == 1:
        return name
    return f"{name}, calibrated" if part["calibrated"] else f"{name}, not calibrated"


def _changes(found: Evaluation, y: IntArray) -> dict[str, Any]:
    """What masks changed: which clips became right or wrong, and their log losses."""
    before, after = (p.numpy() for p in found.probabilities.values())
    right = [p.argmax(axis=1) == y for p in (before, after)]
    losses = [log_losses(p, y) for p in (before, after)]
    rows = []
    for name, of in (
        ("right before and after", right[0] & right[1]),
        ("became right", ~right[0] & right[1]),
        ("became wrong", right[0] & ~right[1]),
        ("wrong before and after", ~right[0] & ~right[1]),
    ):
        means = [float(values[of].mean()) if of.any() else None for values in losses]
        rows.append((name, int(of.sum()), *means))
    return {"rows": rows, "lower": float((losses[1] < losses[0]).mean())}


def _mistakes(
    p: FloatArray,
    y: IntArray,
    clips: ClipList,
    root: Path,
    classes: Sequence[str],
    audio: bool,
) -> Iterator[dict[str, Any]]:
    for mistake in worst_mistakes(p, y, clips, audio=audio):
        yield {
            "file": printable(relative_name(clips[mistake.index].path, root)),
            "truth": classes[y[mistake.index]],
            "probability": float(p[mistake.index, y[mistake.index]]),
            "guesses": names_of(classes, p[mistake.index]),
            "mistake": mistake,
        }
