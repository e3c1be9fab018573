"""predictions.csv: what a network says about every clip, for other programs and for `asc compare`.

filename        relative to the data set's folder, as in its lists
scene_label     what it is; empty where nobody has said
device, city    empty where the name does not tell
predicted       the class of the largest probability
...             then a column of probabilities for every class, named after it
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from asc.data.clips import ClipList, city_from_name, relative_name
from asc.errors import UserError
from asc.files import atomic
from asc.metrics import FloatArray
from asc.report.tables import printable

NAME = "predictions.csv"
_COLUMNS = ("filename", "scene_label", "device", "city", "predicted")


@dataclass(frozen=True)
class Predictions:
    """The content of a file: a row a clip; probabilities (N, classes) float64.

    labels, devices, cities: None where the file has none.
    """

    classes: tuple[str, ...]
    filenames: tuple[str, ...]
    labels: tuple[int | None, ...]
    devices: tuple[str | None, ...]
    cities: tuple[str | None, ...]
    probabilities: FloatArray


def write_predictions(
    path: Path, clips: ClipList, root: Path, classes: Sequence[str], probabilities: Tensor
) -> None:
    """Writes what was found for the clips, all or nothing.

    Probabilities are written with all their digits: they are read back to the last bit.

    Args:
        path: the file.
        clips: with labels or without; of the model's classes where they have labels.
        root: the data set's folder.
        classes: of the model.
        probabilities: (N, classes).

    Raises:
        UserError, OSError: as `asc.files.atomic`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *classes])
    for clip, row in zip(clips, probabilities.tolist(), strict=True):
        label = "" if clip.label is None else classes[clip.label]
        predicted = classes[row.index(max(row))]
        about = label, clip.device or "", city_from_name(clip.path) or "", predicted
        writer.writerow([relative_name(clip.path, root), *about, *row])
    with atomic(path) as file:
        file.write(printable(text.getvalue()).encode())


def read_predictions(path: Path) -> Predictions:
    """Reads what `write_predictions` wrote.

    Args:
        path: the file, or the folder of `asc evaluate --out` that it is in.

    Raises:
        UserError: no such file, other columns, no clips; a clip that is there twice, a label that
            is no class, probabilities that are no numbers or do not sum to one, by line.
    """
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file (asc evaluate WEIGHTS DATA --out DIR leaves one)")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from error
    classes = tuple(header[len(_COLUMNS) :])
    if tuple(header[: len(_COLUMNS)]) != _COLUMNS or not classes:
        expected = ", ".join(_COLUMNS)
        raise UserError(f"{path}: has not the columns {expected} and then one for each class")
    if len(set(classes)) < len(classes):
        raise UserError(f"{path}: names a class twice in its header")
    if not rows:
        raise UserError(f"{path}: holds no clips")
    lines: dict[str, int] = {}
    found = []
    for line, row in rows:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise UserError(f"{where}: has {len(row)} cells, expected {len(header)}")
        name, label = row[:2]
        if name in lines:
            raise UserError(f"{where}: '{name}' is already on line {lines[name]}")
        lines[name] = line
        for kind, value in (("scene_label", label or row[4]), ("predicted", row[4])):
            if value not in classes:
                raise UserError(f"{where}: {kind} '{value}' is none of the classes in the header")
        numbers = _numbers(where, row[len(_COLUMNS) :])
        if numbers[classes.index(row[4])] != max(numbers):
            raise UserError(f"{where}: '{row[4]}' is not its most probable class")
        found.append(numbers)
    columns: Any = zip(*(row[:4] for _, row in rows), strict=True)
    filenames, labels, devices, cities = columns
    return Predictions(
        classes,
        filenames,
        tuple(classes.index(label) if label else None for label in labels),
        tuple(device or None for device in devices),
        tuple(city or None for city in cities),
        np.array(found),
    )


def _numbers(where: str, cells: Sequence[str]) -> list[float]:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError as error:
        raise UserError(f"{where}: {error}, expected probabilities") from error
    in_range = all(0 <= number <= 1 for number in numbers)  # NaN is not
    if not in_range or not math.isclose(sum(numbers), 1, abs_tol=1e-3):
        raise UserError(f"{where}: its probabilities are not in [0, 1] or do not sum to one")
    return numbers
