"""Timelines as a table and as a picture."""

import csv
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from asc.report.timelines import check_timeline, write_timeline
from asc.scoring import Prediction
from asc.timeline import Found

Refused = Callable[..., AbstractContextManager[None]]

CLASSES = ("cat", "$og", "owl, snowy")


def windows(path: str, *labels: int) -> list[Found]:
    """A window of 10 s every 5 s, of a class each, of 80 %."""
    found = []
    for number, label in enumerate(labels):
        p = {name: 0.8 if i == label else 0.1 for i, name in enumerate(CLASSES)}
        prediction = Prediction(CLASSES[label], p, [0.0] * 3)
        start = 5.0 * number
        found.append(Found(Path(path), number, start, start + 10, -50.0, False, False, prediction))
    return found


FOUND = [*windows("a\udcff.wav", 0, 0, 2), *windows("$b$.wav", 1)]


def test_the_table(tmp_path: Path) -> None:
    path = tmp_path / "t.CSV"
    write_timeline(path, FOUND, CLASSES)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "start", "end", "label", *CLASSES]
    assert [row["label"] for row in rows] == ["cat", "cat", "owl, snowy", "$og"]
    assert [row["file"] for row in rows] == 3 * ["a\ufffd.wav"] + ["$b$.wav"]
    assert [(float(row["start"]), float(row["end"])) for row in rows[1:3]] == [(5, 15), (10, 20)]
    for row, found in zip(rows, FOUND, strict=True):
        assert {name: float(row[name]) for name in CLASSES} == found.prediction.probabilities


def test_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    savefig = Figure.savefig

    def spy(self: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(self)
        savefig(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    path = tmp_path / "t.png"
    write_timeline(path, FOUND, CLASSES)
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > height > 300
    (figure,) = drawn
    first, second = figure.axes
    assert first.get_title(loc="left") == "a\ufffd.wav"
    assert first.get_xlim() == (0, 20) and second.get_xlim() == (0, 10)
    # Each window stands for the time around its centre: 0-7.5, 7.5-12.5, 12.5-20 s.
    bars = [(bar.get_x(), bar.get_width(), bar.get_facecolor()) for bar in first.patches]
    assert [bar[:2] for bar in bars] == [(0, 7.5), (7.5, 5), (12.5, 7.5)]
    assert bars[0][2] == bars[1][2] != bars[2][2]
    (legend,) = figure.legends
    assert [re.sub(r"\\", "", text.get_text()) for text in legend.get_texts()] == list(CLASSES)


def test_a_recording_whose_first_windows_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a panel of its own; so has a file that is there twice."""
    rows: list[int] = []
    subplots = Figure.subplots

    def spy(self: Figure, nrows: int, *arguments: Any, **options: Any) -> Any:
        rows.append(nrows)
        return subplots(self, nrows, *arguments, **options)

    monkeypatch.setattr(Figure, "subplots", spy)
    a, b = windows("a.wav", 0, 1, 2), windows("b.wav", 1, 1, 0)
    for found, recordings in ((a[1:], 1), (a + b[1:], 2), (a + a, 2), (a + a[2:], 2)):
        write_timeline(tmp_path / "t.png", found, CLASSES)
        assert rows.pop() == recordings


@pytest.mark.parametrize("classes", [10, 20, 40])
def test_any_number_of_classes_has_colours_of_their_own(classes: int, tmp_path: Path) -> None:
    names = tuple(map(str, range(classes)))
    p = Prediction("0", {name: 1 / classes for name in names}, [0.0] * classes)
    found = [Found(Path("a"), i, 9.0 * i, 9.0 * i + 10, 0.0, False, False, p) for i in range(2)]
    write_timeline(tmp_path / "t.png", found, names)
    assert (tmp_path / "t.png").stat().st_size > 5000


def test_refused(tmp_path: Path, refused: Refused) -> None:
    check_timeline(tmp_path / "t.png", 20)
    check_timeline(tmp_path / "t.csv", 10_000)
    assert not any(tmp_path.iterdir())
    with refused("t.png", "21 recordings", ".csv"):
        check_timeline(tmp_path / "t.png", 21)
    with refused("t.jpg", ".csv or a .png"):
        check_timeline(tmp_path / "t.jpg", 1)
    with refused("none", "folder does not exist"):
        check_timeline(tmp_path / "none" / "t.png", 1)
