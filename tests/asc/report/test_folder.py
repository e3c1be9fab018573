import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from asc.report.folder import (
    check_out,
    import_meanwhile,
    write_evaluation,
    write_unscored,
)
from asc.report.predictions import read_predictions
from asc.scoring import Prediction

Evaluated = Any
Refused = Callable[..., AbstractContextManager[None]]


def write(out: Path, it: Evaluated) -> None:
    write_evaluation(out, it.root, it.clips, it.model, it.found, it.content, audio=False)


def test_three_files(evaluated: Evaluated, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    write(out, evaluated)
    assert sorted(path.name for path in out.iterdir()) == [
        "predictions.csv", "report.html", "scores.json",
    ]  # fmt: skip
    assert json.loads((out / "scores.json").read_text()) == evaluated.content
    found = read_predictions(out)
    assert found.probabilities.tolist() == evaluated.found.probabilities[3].tolist()  # with masks
    assert found.filenames[:2] == (
        "audio/<script>alert(1)</script>.wav", "audio/tram-oslo-1-22-a.wav",
    )  # fmt: skip
    assert found.devices == (None, "a", "s1", "s5", None)
    check_out(out, scored=True)  # may be replaced


def test_predictions_alone_do_not_stand_beside_scores_of_others(
    evaluated: Evaluated, tmp_path: Path, refused: Refused
) -> None:
    p = [0.25, 0.5, 0.125, 0.125]
    found = [Prediction("park", dict(zip(evaluated.model.classes, p, strict=True)), p)] * 5
    out = tmp_path / "out"
    check_out(out, scored=False)
    write_unscored(out, evaluated.root, evaluated.clips, evaluated.model.classes, found)
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]
    assert read_predictions(out).probabilities.tolist() == [p] * 5
    check_out(out, scored=False)
    write(out, evaluated)
    with refused(out, "scores.json", "another folder"):
        check_out(out, scored=False)


def test_what_cannot_be_written_is_said_before(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").touch()
    with refused("file", "expected a folder"):
        check_out(tmp_path / "file", scored=True)
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    with refused("report.html", "is a folder"):
        check_out(tmp_path / "out", scored=True)


def test_scores_are_kept_where_the_folder_cannot_be_written(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "out" / "scores.json").mkdir(parents=True)  # as if it came up meanwhile
    with refused("scores.json", "its content is in"):
        write(tmp_path / "out", evaluated)
    (kept,) = tmp_path.glob("asc-results-*.json")
    assert json.loads(kept.read_text()) == evaluated.content


def test_what_draws_is_imported_beside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be imported is not said there, but where it is needed."""
    asked: list[str] = []

    def import_module(name: str) -> None:
        asked.append(name)
        if len(asked) > 1:
            raise ImportError(name)

    said: list[Any] = []
    monkeypatch.setattr("threading.excepthook", said.append)
    monkeypatch.setattr("asc.report.folder.import_module", import_module)
    import_meanwhile().join()
    assert asked == ["asc.report.page", "torchmetrics.functional.classification"] and said == []
