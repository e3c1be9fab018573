"""Evaluations of the same clips side by side: what each scores, and how sure their differences are.

Runs that differ in nothing but their seed are one system: its scores are means, with the standard
deviation over the seeds.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from asc.bootstrap import (
    COVERAGE,
    RESAMPLES,
    Interval,
    Units,
    class_means,
    interval,
    ratio,
    resampled_sums,
    units,
)
from asc.data.clips import location_from_name
from asc.errors import UserError
from asc.metrics import FloatArray, IntArray, brier_scores, log_losses, score
from asc.report.folder import SCORES
from asc.report.predictions import Predictions, read_predictions
from asc.report.tables import printable, system_name

_OF_EACH = {
    "weights",
    "network",
    "data",
    "seed",
    "temperature",
}  # members of a system may differ in them


@dataclass(frozen=True)
class Evaluated:
    """A folder of `asc evaluate --out`; settings: its scores.json, {} where there is none."""

    folder: str
    predictions: Predictions
    settings: dict[str, Any]

    @property
    def run(self) -> dict[str, Any] | None:
        """The settings it was trained with, if the weights told them."""
        return self.settings.get("run")


@dataclass(frozen=True)
class System:
    """One or more evaluations that differ in nothing but the seed of their training.

    scores: of every member, by name in `asc.metrics.Scores`; and "brier".
    per_class, per_device: log losses by name, means over the members; None for no clips.
    """

    name: str
    members: tuple[Evaluated, ...]
    scores: dict[str, list[float]]
    per_class: dict[str, float | None]
    per_device: dict[str, float | None]

    @property
    def seeds(self) -> list[int]:
        """Those of the members' training, where they are several."""
        return [m.run["seed"] for m in self.members if m.run and len(self.members) > 1]


@dataclass(frozen=True)
class Difference:
    """Scores of the second system minus those of the first, and their intervals."""

    first: str
    second: str
    log_loss: float
    accuracy: float
    log_loss_interval: Interval | None
    accuracy_interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Systems on the same clips, in the order they were given, and every two of them."""

    clips: int
    drawn: Units
    systems: list[System]
    differences: list[Difference]
    coverage: float = COVERAGE
    resamples: int = RESAMPLES


def compare(folders: Sequence[Path]) -> Comparison:
    """Compares evaluations.

    Args:
        folders: of `asc evaluate --out`, two or more.

    Raises:
        UserError: fewer, one that cannot be read or has no labels, or evaluations of other clips,
            classes or labels than the first.
    """
    if len(folders) < 2:
        raise UserError("there is nothing to compare it with: name two folders or more")
    first, *others = map(read_evaluation, folders)
    members = [first, *(_in_order(first, other) for other in others)]
    reference = first.predictions
    y = np.array(reference.labels, dtype=np.int64)
    drawn = units([location_from_name(Path(name)) for name in reference.filenames])
    systems = [_system(name, group) for name, group in _named(_groups(members))]
    return Comparison(len(y), drawn, systems, list(_differences(systems, y, drawn)))


def read_evaluation(folder: Path) -> Evaluated:
    """Reads a folder of `asc evaluate --out`.

    Raises:
        UserError: it is none, or a file in it is damaged; clips without labels.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (asc evaluate WEIGHTS DATA --out DIR makes one)")
    predictions, path = read_predictions(folder), folder / SCORES
    if None in predictions.labels:
        name = predictions.filenames[predictions.labels.index(None)]
        raise UserError(f"{folder}: has clips without a label, such as '{name}'")
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if settings:
            settings["weights"], settings["data"]
            if not isinstance(settings["results"][-1]["tta"], (int, dict)):
                raise TypeError
        run = settings.get("run")
        if run is not None and not (isinstance(run["seed"], int) and run["preset"]["name"]):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds no scores of asc evaluate, or is damaged") from error
    return Evaluated(printable(folder), predictions, settings)


def _in_order(first: Evaluated, other: Evaluated) -> Evaluated:
    """The other evaluation with its clips in the first one's order."""
    mine, theirs = first.predictions, other.predictions
    differ = f"{other.folder}: cannot be compared with {first.folder}"
    if theirs.classes != mine.classes:
        odd = sorted({*theirs.classes} ^ {*mine.classes})
        what = f"one of them alone has '{odd[0]}'" if odd else "they are in another order"
        raise UserError(f"{differ}: its classes are others ({what})")
    place = {name: i for i, name in enumerate(theirs.filenames)}
    missing = [name for name in mine.filenames if name not in place]
    more = sorted({*theirs.filenames} - {*mine.filenames})
    said = [
        f"{len(names)} are in {folder} alone, such as '{names[0]}'"
        for folder, names in ((first.folder, missing), (other.folder, more))
        if names
    ]
    if said:
        raise UserError(f"{differ}: its clips are others ({'; '.join(said)})")
    order = [place[name] for name in mine.filenames]
    labels = tuple(theirs.labels[i] for i in order)
    for name, a, b in zip(mine.filenames, mine.labels, labels, strict=True):
        if a != b:
            assert a is not None and b is not None, "read_evaluation wants labels"
            here, there = mine.classes[a], mine.classes[b]
            raise UserError(f"{differ}: '{name}' is '{here}' in the one and '{there}' in the other")
    ordered = replace(mine, probabilities=theirs.probabilities[order])
    return replace(other, predictions=ordered)


def _groups(members: Sequence[Evaluated]) -> Iterator[list[Evaluated]]:
    """Those of one system together; what says nothing of its training is one of its own."""
    groups: dict[str, list[Evaluated]] = {}
    for member in members:
        if member.run is None:
            groups[f"folder {len(groups)}"] = [member]
            continue
        settings = member.settings
        alike = {name: value for name, value in member.run.items() if name != "seed"}
        how = {
            name: value
            for name, value in settings.items()
            if not isinstance(value, (list, dict)) and name not in _OF_EACH
        }
        calibrated = settings.get("temperature", 1) != 1
        key = json.dumps([alike, how, calibrated, _tta(member)], sort_keys=True)
        groups.setdefault(key, []).append(member)
    for group in groups.values():
        seeds = Counter(member.run["seed"] for member in group if member.run)
        if len(group) > 1 and max(seeds.values()) > 1:  # no spread over seeds, the same run twice
            yield from ([member] for member in group)
        else:
            yield group


def _tta(member: Evaluated) -> Any:
    return member.settings["results"][-1]["tta"]


def _named(groups: Iterator[list[Evaluated]]) -> Iterator[tuple[str, list[Evaluated]]]:
    """A single evaluation is called by its folder, several by their preset if that tells them."""
    given = list(groups)
    names = []
    for group in given:
        run, tta = group[0].run, group[0].settings and _tta(group[0])
        if run is None or len(group) == 1:
            names.append(group[0].folder)
        else:
            names.append(f"{run['preset']['name']}, {system_name(tta)}")
    several = Counter(names)
    for name, group in zip(names, given, strict=True):
        yield name if several[name] == 1 else ", ".join(m.folder for m in group), group


def _system(name: str, members: Sequence[Evaluated]) -> System:
    about = members[0].predictions
    y = np.array(about.labels, dtype=np.int64)
    each = [score(m.predictions.probabilities, y, about.classes, about.devices) for m in members]
    plain = ("log_loss_macro", "log_loss_samples", "accuracy_macro", "accuracy_samples", "ece")
    return System(
        name,
        tuple(members),
        {key: [getattr(s, key) for s in each] for key in plain}
        | {"brier": [float(brier_scores(m.predictions.probabilities, y).mean()) for m in members]},
        {
            name: float(np.mean([s.per_class[name].log_loss for s in each])) if row.count else None
            for name, row in each[0].per_class.items()
        },
        {
            name: float(np.mean([s.per_device[name].log_loss_macro for s in each]))
            for name in each[0].per_device
        },
    )


def _differences(systems: Sequence[System], y: IntArray, drawn: Units) -> Iterator[Difference]:
    """Of every two systems; the resamples are the same for all."""
    classes = len(systems[0].members[0].predictions.classes)
    columns = []
    for system in systems:
        p = [member.predictions.probabilities for member in system.members]
        losses: FloatArray = np.mean([log_losses(each, y) for each in p], axis=0)
        hits: FloatArray = np.mean([each.argmax(axis=1) == y for each in p], axis=0)
        columns += [class_means(losses, y, classes)[0], class_means(hits, y, classes)[0]]
    columns.append(np.eye(classes)[y])
    values = np.hstack(columns)
    scores = _macro(values.sum(axis=0, keepdims=True), classes)
    resampled = _macro(resampled_sums(values, drawn), classes) if drawn.count > 1 else None
    for a, b in combinations(range(len(systems)), 2):
        ends: list[Interval | None] = [None, None]
        if resampled is not None:
            ends = [interval(resampled[2 * b + k] - resampled[2 * a + k]) for k in (0, 1)]
        loss, accuracy = (float(scores[2 * b + k][0] - scores[2 * a + k][0]) for k in (0, 1))
        yield Difference(systems[a].name, systems[b].name, loss, accuracy, *ends)


def _macro(sums: FloatArray, classes: int) -> list[FloatArray]:
    """Means over classes, M times (R,): of (R, M * classes) sums and last the numbers of clips."""
    *parts, counts = np.split(sums, sums.shape[1] // classes, axis=1)
    present = counts.any(axis=0)
    return [np.nanmean(ratio(part, counts)[:, present], axis=1) for part in parts]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of n - 1) of the members' scores; None for one of them."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def clear(ends: Interval | None) -> bool | None:
    """Whether an interval of a difference leaves its sign in no doubt; None without one."""
    return None if ends is None else not ends[0] <= 0 <= ends[1]


def by_system(comparison: Comparison, part: str) -> list[tuple[str, list[float | None]]]:
    """Rows of log losses by class or device ("per_class", "per_device"), a column a system."""
    tables: list[Mapping[str, float | None]] = [getattr(s, part) for s in comparison.systems]
    return [(name, [table[name] for table in tables]) for name in tables[0]]
