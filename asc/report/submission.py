"""A submission to DCASE 2021 Task 1A: the table of a system's outputs and its meta information.

Everything is checked before anything is written: `UserError` says which rule is broken.

Source: the templates of the challenge's 2021 edition, the fields that its validator requires, and
the report's own submission.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from asc.complexity import limits, size
from asc.errors import UserError, note
from asc.model import Cnn6Sep
from asc.prediction import Until
from asc.report.folder import SCORES
from asc.scoring import Prediction
from asc.task import DEVICES, SCENES

HEADER = ("filename", "scene_label", *SCENES)
_LABEL = re.compile(r"[A-Za-z][A-Za-z-]*_[A-Za-z0-9-]+_task1a_[1-4]")
_MAX_ABBREVIATION = 10  # characters
_SUM_ERROR = 1e-5  # of probabilities that float32 may have held

_AUTHOR = ("lastname", "firstname", "email", "affiliation")
_AFFILIATION = ("abbreviation", "institute", "location")
_DATASET = ("name", "url", "total_audio_length")


@dataclass(frozen=True)
class Entry:
    """What only its authors can say of a submission; see `read_entry`."""

    name: str
    abbreviation: str
    authors: list[dict[str, Any]]
    description: dict[str, Any]
    external_datasets: list[dict[str, Any]]
    source_code: str


def check_label(label: str) -> None:
    """UserError unless a label is of the challenge's form."""
    if not _LABEL.fullmatch(label):
        raise UserError(
            f"--label: {label!r} is not of the form Lastname_INSTITUTE_task1a_N: the last name of "
            "the corresponding author and the abbreviation of the institute, in ASCII and with no "
            "other underscores, and N from 1 to 4"
        )


def note_other_name(label: str, entry: Entry) -> None:
    """Says so if a label does not begin with the last name of the corresponding author."""
    (author,) = (author for author in entry.authors if author.get("corresponding") is True)
    name = unicodedata.normalize("NFKD", author["lastname"])
    letters = [letter.lower() for letter in name if letter.isascii() and letter.isalnum()]
    begins = [letter.lower() for letter in label.partition("_")[0] if letter.isalnum()]
    if letters != begins:
        note(f"--label {label}: the corresponding author is {author['lastname']}")


def read_entry(path: Path) -> Entry:
    """Reads what its authors say of a submission: a YAML file, of which the first three have to be.

        name: Separable convolutions with test-time augmentation
        abbreviation: sep_tta        # at most 10 characters
        authors:                     # in order; one is corresponding (a single author need not say)
          - {lastname: Doe, firstname: Jane, email: jane@example.org, corresponding: true,
             affiliation: {abbreviation: XYZ, institute: Institute of X, location: Paris}}
        description: {data_augmentation: "SpecAugment, mixup"}   # in place of what `meta` fills in
        external_datasets: []        # of mappings of name, url, total_audio_length in minutes
        source_code: https://...

    Raises:
        UserError: not such a file; it names the field.
        OSError: it cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    optional: dict[str, Any] = {"description": {}, "external_datasets": [], "source_code": ""}
    fields = _fields(path, content, ("name", "abbreviation", "authors"), tuple(optional))
    entry = Entry(**optional | fields)
    for name in ("name", "abbreviation"):
        _text(path, fields, name)
    if len(entry.abbreviation) > _MAX_ABBREVIATION:
        raise UserError(
            f"{path}: abbreviation '{entry.abbreviation}' has more than the "
            f"{_MAX_ABBREVIATION} characters allowed"
        )
    _check_authors(path, entry.authors)
    if not isinstance(entry.description, dict) or not set(entry.description) <= set(_description()):
        known = ", ".join(_description())
        raise UserError(f"{path}: description: expected a mapping with some of {known}")
    if not isinstance(entry.external_datasets, list):
        raise UserError(f"{path}: external_datasets: expected a list")
    for data_set in entry.external_datasets:
        _fields(path, data_set, _DATASET, (), "of external_datasets: ")
    if not isinstance(entry.source_code, str):
        raise UserError(f"{path}: source_code: expected a text, an address")
    return entry


def _check_authors(path: Path, authors: Any) -> None:
    if not isinstance(authors, list) or not authors:
        raise UserError(f"{path}: authors: expected a list of at least one")
    for i, author in enumerate(authors, 1):
        where = f"author {i}: "
        _fields(path, author, _AUTHOR, ("corresponding",), where)
        for name in _AUTHOR[:3]:
            _text(path, author, name, where)
        place = f"{where}affiliation: "
        affiliation = _fields(path, author["affiliation"], _AFFILIATION, ("department",), place)
        for name in affiliation:
            _text(path, affiliation, name, place)
    if len(authors) == 1:
        authors[0].setdefault("corresponding", True)
    corresponding = sum(author.get("corresponding") is True for author in authors)
    if corresponding != 1:
        raise UserError(
            f"{path}: authors: one has to be marked 'corresponding: true', {corresponding} are"
        )


def _fields(
    path: Path, content: Any, required: Sequence[str], optional: Sequence[str], where: str = ""
) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: {where}expected a mapping with {', '.join(required)}")
    for name in required:
        if name not in content:
            raise UserError(f"{path}: {where}'{name}' is missing")
    for name in content:
        if name not in (*required, *optional):
            known = ", ".join((*required, *optional))
            raise UserError(f"{path}: {where}'{name}' is not one of {known}")
    return content


def _text(path: Path, fields: Mapping[str, Any], name: str, where: str = "") -> None:
    if not isinstance(fields[name], str) or not fields[name].strip():
        raise UserError(f"{path}: {where}{name}: expected a text, got {fields[name]!r}")


def read_results(
    path: Path, tta: int | Until, network: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The development set's scores of an evaluation, as the meta information holds them.

    Log losses are in nats and averaged over classes, as accuracies, which are in percent; None of
    classes and devices without clips.

    Args:
        path: what `asc evaluate --json` wrote, or a folder with it as scores.json.
        tta: of the scores to take.
        network: whose they should be: its `asc.checkpoint.fingerprint`.
        settings: `eps`, `gain` and `precision`, which have to have been the same there.

    Raises:
        UserError: no scores there, of another network, other classes or another split, not with
            these masks, or under other settings.
        OSError: it cannot be read.
    """
    path = path / SCORES if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        split, systems = content["split"], content["results"]
        wanted = tta if isinstance(tta, int) else asdict(tta)
        there = [system["tta"] for system in systems]
        if split != "evaluate":
            raise UserError(f"{path}: scores of the split '{split}', expected those of 'evaluate'")
        if wanted not in there:
            raise UserError(
                f"{path}: has no scores under --tta {_shown(wanted)}, but under "
                f"{' and '.join(map(_shown, there))}: evaluate as you submit"
            )
        for name, value in settings.items():
            if content[name] != value:
                raise UserError(
                    f"{path}: holds scores under {_option(name, content[name])}, not "
                    f"{_option(name, value)}: evaluate as you submit"
                )
        system = systems[there.index(wanted)]
        if tuple(system["per_class"]) != SCENES:
            raise UserError(f"{path}: scores of other classes than the ten of the task")
        if content["network"] != network:
            raise UserError(
                f"{path}: holds scores of {content['weights']} as it was then, which is another "
                "network than the weights given: evaluate what you submit"
            )
        classes, devices = system["per_class"], system["per_device"]
        return {
            "overall": _result(system["log_loss_macro"], system["accuracy_macro"]),
            "class_wise": {
                name: _result(classes[name]["log_loss"], classes[name]["accuracy"])
                for name in SCENES
            },
            "device_wise": {
                name: _result(devices[name]["log_loss_macro"], devices[name]["accuracy"])
                if name in devices
                else _result(None, None)
                for name in DEVICES
            },
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not what asc evaluate --json writes, or is damaged") from error


def _result(log_loss: float | None, accuracy: float | None) -> dict[str, float | None]:
    if log_loss is None or accuracy is None:
        return {"logloss": log_loss, "accuracy": accuracy}
    if not (0 <= log_loss < math.inf and 0 <= accuracy <= 1):
        raise ValueError(f"no log loss and accuracy: {log_loss}, {accuracy}")
    return {"logloss": log_loss, "accuracy": 100 * accuracy}


def _option(name: str, value: Any) -> str:
    return f"no --{name}" if value is None else f"--{name} {value}"


def _shown(tta: int | dict[str, Any]) -> str:
    return str(tta) if isinstance(tta, int) else f"auto --tta-tolerance {tta['tolerance']}"


@torch.no_grad()
def as_submitted(model: Cnn6Sep) -> Cnn6Sep:
    """A copy as it is stored: parameters rounded to float16, computed with in float32.

    Args:
        model: folded.

    Raises:
        UserError: other classes than the task's, parameters beyond float16, or more than 128 KB.
    """
    if model.classes != SCENES:
        raise UserError(
            f"the network's classes are {', '.join(model.classes)}, those of the task "
            f"{', '.join(SCENES)}"
        )
    stored = model.folded()
    for name, parameter in stored.named_parameters():
        parameter.copy_(parameter.half())
        if not parameter.isfinite().all():
            raise UserError(f"'{name}' of the network holds more than float16 can, which is 65504")
    limit = limits(stored)[0]
    if not limit.passed:
        raise UserError(
            f"the network takes {limit.value} bytes in float16, the task allows {limit.most} "
            "(128 KB)"
        )
    return stored


def meta(
    label: str,
    entry: Entry,
    model: Cnn6Sep,
    tta: int | Until,
    augmentation: str,
    results: Mapping[str, Any],
) -> dict[str, Any]:
    """The task's meta information, as its YAML file holds it.

    Args:
        label: see `check_label`.
        entry: see `read_entry`.
        model: see `as_submitted`.
        tta: that the outputs were computed with.
        augmentation: what the network was trained with, in the template's words.
        results: see `read_results`.
    """
    counted, limit = size(model), limits(model)[0]
    filled = _description() | {"data_augmentation": augmentation}
    if tta:
        filled["decision_making"] = "average"
    return {
        "submission": {
            "label": label,
            "name": entry.name,
            "abbreviation": entry.abbreviation,
            "authors": entry.authors,
        },
        "system": {
            "description": filled | entry.description,
            "complexity": {
                "total_parameters": counted.parameters,
                "total_parameters_non_zero": counted.nonzero,
                "model_size": limit.value / 1024,
            },
            "external_datasets": entry.external_datasets,
            "source_code": entry.source_code,
        },
        "results": {"development_dataset": dict(results)},
    }


def _description() -> dict[str, Any]:
    """The template's fields; None is its word for what does not apply."""
    return {
        "input_sampling_rate": "44.1kHz",
        "acoustic_features": "log-mel energies",
        "embeddings": None,
        "data_augmentation": None,
        "machine_learning_method": "CNN",
        "ensemble_method_subsystem_count": None,
        "decision_making": None,
        "external_data_usage": None,
        "complexity_management": "weight quantization",
    }


def trained_with(weights: Path, run: Mapping[str, Any] | None) -> str:
    """The augmentation of a network's run (`Cnn6Sep.run`); of none SpecAugment, which is noted."""
    if run is None:
        note(
            f"{weights}: does not tell how it was trained; the meta information says with "
            "SpecAugment (data_augmentation under description, in the file of the authors, says "
            "otherwise)"
        )
        return "SpecAugment"
    return "SpecAugment" if run["preset"]["mixup_alpha"] is None else "SpecAugment, mixup"


def meta_yaml(content: Mapping[str, Any]) -> str:
    """The meta information as text."""
    kilobytes = content["system"]["complexity"]["model_size"]
    return (
        f"# model_size is in KB of 1024 bytes: {kilobytes * 1024:.0f} bytes in float16, zeros not "
        "counted.\n# Log losses are in nats, accuracies in percent; both are means over classes.\n"
        + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    )


def output_table(names: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """The outputs as text: tab separated, a header, a row a clip.

    Raises:
        UserError: as `check_output`.
    """
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(HEADER)
    for name, found in zip(names, predictions, strict=True):
        values = (found.probabilities[scene] for scene in SCENES)
        writer.writerow([name, found.label, *map(repr, values)])
    text = file.getvalue()
    check_output(text, names)
    return text


def check_output(text: str, names: Sequence[str]) -> None:
    """Checks a table of outputs against the rules.

    Args:
        text: the table.
        names: the files of the evaluation set, in the order of its list, without "audio/".

    Raises:
        UserError: rows that are not the set's, in its order; labels, probabilities or columns that
            are not the task's; it names the row.
    """
    header, *rows = csv.reader(io.StringIO(text), delimiter="\t")
    if tuple(header) != HEADER:
        raise UserError(f"the outputs' columns are {', '.join(header)}, not {', '.join(HEADER)}")
    if len(set(names)) != len(names):
        raise UserError("files of the evaluation set have the same name in different folders")
    if len(rows) != len(names):
        raise UserError(f"the outputs have {len(rows)} rows, the evaluation set {len(names)} files")
    for i, (row, name) in enumerate(zip(rows, names, strict=True), 1):
        if problem := _problem(row, name):
            raise UserError(f"outputs, row {i} ('{row[0]}'): {problem}")


def _problem(row: Sequence[str], name: str) -> str | None:
    if row[0] != name:
        return f"the evaluation set has '{name}' in this place"
    if len(row) != len(HEADER):
        return f"{len(row)} columns, not {len(HEADER)}"
    if row[1] not in SCENES:
        return f"'{row[1]}' is not one of {', '.join(SCENES)}"
    try:
        p = [float(value) for value in row[2:]]
    except ValueError as error:
        return f"a probability is no number ({error})"
    if not all(0 <= value <= 1 for value in p):  # NaN is not, either
        return "a probability is not between 0 and 1"
    if abs(math.fsum(p) - 1) > _SUM_ERROR:
        return f"the probabilities sum to {math.fsum(p)}, not 1"
    if p[SCENES.index(row[1])] < max(p):
        return f"'{row[1]}' is not the most probable class"
    return None
