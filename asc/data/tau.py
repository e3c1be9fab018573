"""Reader of the TAU Urban Acoustic Scenes Mobile layout (development and evaluation sets)."""

import csv
from pathlib import Path
from typing import Literal

from asc.data.clips import Clip, ClipList, device_from_name
from asc.errors import UserError
from asc.task import SCENES

Split = Literal["train", "evaluate", "test", "all"]  # all: train and evaluate

SETUP_FOLDER = "evaluation_setup"


def read_tau(root: Path, split: Split) -> ClipList:
    """Reads one split of a data set in TAU layout.

    Files, tab separated with a header: `evaluation_setup/fold1_{train,evaluate}.csv` (filename,
    scene_label), `fold1_test.csv` (filename), `meta.csv` (filename, scene_label, identifier,
    source_label). File names are relative to root. The device is meta's source_label; clips that
    meta does not list, or sets without meta.csv, fall back to the `-device` ending of the name.

    Clips of the test split have label None: its list carries no labels. Evaluation sets have no
    other list; the evaluate split is then that one, with labels from meta.csv if it has any. Split
    "all" is train and evaluate.

    Raises:
        UserError: not a TAU folder, list missing or unreadable, missing columns, unknown scene
            label, listed audio missing, duplicate entries, empty list.
    """
    setup = root / SETUP_FOLDER
    if split == "all":
        labelled = read_tau(root, "evaluate")
        return (
            read_tau(root, "train") + labelled if (setup / "fold1_train.csv").exists() else labelled
        )
    if not setup.is_dir():
        raise UserError(f"{root}: not a TAU data set (no folder '{SETUP_FOLDER}')")
    meta_path = root / "meta.csv"
    meta: dict[str, dict[str, str]] = {}
    if meta_path.is_file():
        meta = {row["filename"]: row for _, row in _read_table(meta_path, ("filename",))}

    list_path = setup / f"fold1_{split}.csv"
    columns: tuple[str, ...] = ("filename",) if split == "test" else ("filename", "scene_label")
    if split != "test" and not list_path.exists() and (setup / "fold1_test.csv").is_file():
        if split == "train" or not any(row.get("scene_label") for row in meta.values()):
            raise UserError(
                f"{list_path}: no such file; this set is one to predict, without labels: try "
                f"asc predict WEIGHTS {root}"
            )
        list_path, columns = setup / "fold1_test.csv", ("filename",)  # labels are in meta.csv
    clips: list[Clip] = []
    first_line: dict[str, int] = {}
    for line, row in _read_table(list_path, columns):
        name = row["filename"]
        path = root / name
        if name in first_line:
            raise UserError(
                f"{list_path}, line {line}: '{name}' is already on line {first_line[name]}"
            )
        first_line[name] = line
        label = None
        if split != "test":
            scene = row.get("scene_label") or meta.get(name, {}).get("scene_label")
            if scene not in SCENES:
                raise UserError(
                    f"{list_path}, line {line}: unknown scene label '{scene or ''}', "
                    f"expected one of {', '.join(SCENES)}"
                )
            label = SCENES.index(scene)
        if not path.is_file():
            raise UserError(f"{list_path}, line {line}: no such audio file: {path}")
        clips.append(
            Clip(path, label, meta.get(name, {}).get("source_label") or device_from_name(path))
        )
    if not clips:
        raise UserError(f"{list_path}: lists no clips")
    return ClipList(SCENES, tuple(clips))


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a tab-separated table with their line numbers; columns must all be there."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: no column '{missing[0]}' in its header (tab separated)")
            for row in reader:
                for column in columns:
                    if not row[column]:
                        raise UserError(f"{path}, line {reader.line_num}: '{column}' is empty")
                rows.append((reader.line_num, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from error
    return rows
