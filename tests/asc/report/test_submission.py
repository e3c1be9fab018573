import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asc.model import Cnn6Sep
from asc.prediction import Until
from asc.report.submission import (
    HEADER,
    as_submitted,
    check_label,
    check_output,
    meta,
    meta_yaml,
    note_other_name,
    output_table,
    read_entry,
    read_results,
    trained_with,
)
from asc.scoring import Prediction
from asc.task import DEVICES, SCENES
from asc.training.settings import Settings

Refused = Callable[..., Any]

AFFILIATION = {"abbreviation": "XYZ", "institute": "Institute of X", "location": "Paris"}
AUTHOR = {
    "lastname": "Doe", "firstname": "Jane", "email": "jane@example.org", "corresponding": True,
    "affiliation": AFFILIATION,
}  # fmt: skip
WEIGHTS = Path("b/folded.pt")
SETTINGS = {"eps": None, "gain": 0.0, "precision": "float32"}
ENTRY = {"name": "A system", "abbreviation": "system", "authors": [AUTHOR]}


@pytest.mark.parametrize("label", ["Doe_XYZ_task1a_1", "Doe-Roe_X-2_task1a_4"])
def test_labels(label: str) -> None:
    check_label(label)


@pytest.mark.parametrize(
    "label",
    ["", "Doe_task1a_1", "Doe_XYZ_task1b_1", "Doe_XYZ_task1a_0", "Doe_XYZ_task1a_5",
     "Doe_XYZ_task1a_11", "Doe_X_Y_task1a_1", "../D_XYZ_task1a_1", "D\u00f6e_XYZ_task1a_1",
     "Doe_XYZ_task1a_1\n"],
)  # fmt: skip
def test_other_labels(label: str, refused: Refused) -> None:
    with refused("--label", "Lastname_INSTITUTE_task1a_N"):
        check_label(label)


@pytest.fixture
def authors(tmp_path: Path) -> Callable[..., Path]:
    """authors(changes...): the file of the authors, with other fields; None leaves a field out."""

    def write(**changes: Any) -> Path:
        content = {name: value for name, value in (ENTRY | changes).items() if value is not None}
        path = tmp_path / "authors.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_entry(authors: Callable[..., Path]) -> None:
    entry = read_entry(authors())
    assert (entry.name, entry.abbreviation, entry.authors) == ("A system", "system", [AUTHOR])
    assert (entry.description, entry.external_datasets, entry.source_code) == ({}, [], "")
    data_set = {"name": "x", "url": "https://x", "total_audio_length": 3}
    more = {"external_datasets": [data_set], "source_code": "https://y"}
    entry = read_entry(authors(**more, description={"embeddings": "VGGish"}))
    assert entry.external_datasets == [data_set] and entry.source_code == "https://y"
    assert entry.description == {"embeddings": "VGGish"}
    alone = {name: value for name, value in AUTHOR.items() if name != "corresponding"}
    assert read_entry(authors(authors=[alone])).authors == [AUTHOR]


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"name": None}, "'name' is missing"),
        ({"name": 3}, "name: expected a text, got 3"),
        ({"abbreviation": "more than 10"}, "10 characters"),
        ({"authors": []}, "authors: expected a list"),
        ({"authors": [AUTHOR, AUTHOR]}, "2 are"),
        ({"authors": [AUTHOR | {"corresponding": False}]}, "0 are"),
        ({"authors": [without(AUTHOR, "email")]}, "author 1: 'email' is missing"),
        ({"authors": [AUTHOR, AUTHOR | {"corespondng": True}]}, "author 2: 'corespondng'"),
        ({"authors": [AUTHOR | {"lastname": " "}]}, "author 1: lastname"),
        ({"authors": [AUTHOR | {"affiliation": "XYZ"}]}, "author 1: affiliation: expected"),
        ({"authors": [AUTHOR | {"affiliation": without(AFFILIATION, "location")}]}, "'location'"),
        ({"description": {"model": "CNN"}}, "machine_learning_method"),
        ({"external_datasets": {}}, "expected a list"),
        ({"external_datasets": [{"name": "x", "url": "y"}]}, "'total_audio_length' is missing"),
        ({"source_code": 3}, "source_code"),
        ({"label": "Doe_XYZ_task1a_1"}, "'label' is not one of"),
    ],
)  # fmt: skip
def test_bad_entry(
    changes: dict[str, Any], part: str, authors: Callable[..., Path], refused: Refused
) -> None:
    path = authors(**changes)
    with refused(path, part):
        read_entry(path)


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"- a", b""])
def test_entry_that_is_none(content: bytes, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "authors.yaml"
    path.write_bytes(content)
    with refused(path):
        read_entry(path)


def test_labels_begin_with_a_name(
    authors: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    entry = read_entry(authors())
    name = next(a["lastname"] for a in entry.authors if a.get("corresponding"))
    note_other_name(f"{name}_XYZ_task1a_1", entry)
    assert not caplog.text
    note_other_name("Nobody_XYZ_task1a_1", entry)
    assert "Nobody_XYZ_task1a_1" in caplog.text and name in caplog.text


def system(tta: Any, log_loss: float) -> dict[str, Any]:
    """Scores as `asc evaluate --json` writes them, with no clips of trams and of most devices."""
    classes = {name: {"count": 1, "log_loss": log_loss + i, "accuracy": i / 10}
               for i, name in enumerate(SCENES)}  # fmt: skip
    classes["tram"] = {"count": 0, "log_loss": None, "accuracy": None}
    device = {"count": 1, "log_loss_macro": 0.5, "log_loss_samples": 9, "accuracy": 0.25}
    overall = {"log_loss_macro": log_loss, "log_loss_samples": 9, "accuracy_macro": 0.75}
    return {"tta": tta, "per_class": classes, "per_device": dict.fromkeys("ab", device)} | overall


@pytest.fixture
def scores(tmp_path: Path) -> Callable[..., Path]:
    """scores(changes...): the file of an evaluation without masks, under 30 and under as needed."""

    def write(**changes: Any) -> Path:
        until = {"tolerance": 0.02, "most": 1000}
        systems = [system(0, 1.5), system(30, 1.25), system(until, 1.125)]
        path = tmp_path / "scores.json"
        content = {
            "weights": "a/folded.pt",
            "network": "ab12",
            "split": "evaluate",
            "results": systems,
        } | SETTINGS
        path.write_text(json.dumps(content | changes))
        return path

    return write


def test_results(scores: Callable[..., Path]) -> None:
    path = scores()
    found = read_results(path, 30, "ab12", SETTINGS)
    assert read_results(path.parent, 30, "ab12", SETTINGS) == found
    assert found["overall"] == {"logloss": 1.25, "accuracy": 75}
    assert list(found["class_wise"]) == list(SCENES)
    assert found["class_wise"]["bus"] == {"logloss": 2.25, "accuracy": 10}
    assert found["class_wise"]["tram"] == {"logloss": None, "accuracy": None}
    assert list(found["device_wise"]) == list(DEVICES)
    assert found["device_wise"]["b"] == {"logloss": 0.5, "accuracy": 25}
    assert found["device_wise"]["s6"] == {"logloss": None, "accuracy": None}
    assert read_results(path, 0, "ab12", SETTINGS)["overall"]["logloss"] == 1.5
    assert read_results(path, Until(0.02), "ab12", SETTINGS)["overall"]["logloss"] == 1.125


@pytest.mark.parametrize(
    ("changes", "tta", "part"),
    [
        ({"split": "train"}, 0, "the split 'train'"),
        ({}, 20, "no scores under --tta 20, but under 0 and 30 and auto --tta-tolerance 0.02"),
        ({"results": [system(0, 1) | {"per_class": {}}]}, 0, "other classes"),
        ({"results": [{"tta": 0}]}, 0, "damaged"),
        ({"results": 3}, 0, "damaged"),
        ({"eps": 0.0}, 0, "under --eps 0.0, not no --eps"),
        ({"gain": "auto"}, 0, "under --gain auto, not --gain 0"),
        ({"precision": "bf16"}, 0, "under --precision bf16"),
        ({"network": "cd34"}, 0, "scores of a/folded.pt as it was then"),
        ({"results": [system(0, math.nan)]}, 0, "damaged"),
        ({"results": [system(0, 1) | {"accuracy_macro": 75}]}, 0, "damaged"),
        ({"results": [system(0, 1) | {"log_loss_macro": "1"}]}, 0, "damaged"),
    ],
)
def test_bad_results(
    changes: dict[str, Any], tta: int, part: str, scores: Callable[..., Path], refused: Refused
) -> None:
    path = scores(**changes)
    with refused(path, part):
        read_results(path, tta, "ab12", SETTINGS)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}"])
def test_results_that_are_none(content: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "x.json").write_text(content)
    with refused(tmp_path / "x.json", "damaged"):
        read_results(tmp_path / "x.json", 0, "ab12", SETTINGS)


def test_the_network_is_rounded_as_it_is_stored() -> None:
    model = Cnn6Sep().folded()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for name, parameter in as_submitted(model).named_parameters():
        assert torch.equal(parameter, before[name].half().float())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_networks_that_break_the_rules(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    with refused("classes", "class 0", "airport"):
        as_submitted(Cnn6Sep(3).folded())
    model = Cnn6Sep().folded()
    model.fc1.bias.fill_(1e5)
    with refused("fc1.bias", "65504"):
        as_submitted(model)
    model = Cnn6Sep().folded()
    model.fc1 = torch.nn.Linear(128, 200).requires_grad_(False)
    model.fc2 = torch.nn.Linear(200, 10).requires_grad_(False)
    with refused("131072 (128 KB)"):
        as_submitted(model)


def test_meta(authors: Callable[..., Path], scores: Callable[..., Path]) -> None:
    model = as_submitted(Cnn6Sep().folded())
    results = read_results(scores(), 30, "ab12", SETTINGS)
    entry = read_entry(authors(description={"external_data_usage": "directly"}))
    content = meta("Doe_XYZ_task1a_1", entry, model, 30, "SpecAugment, mixup", results)
    text = meta_yaml(content)
    assert yaml.safe_load(text) == content
    described = content["system"]["description"]
    assert described["decision_making"] == "average"
    assert described["data_augmentation"] == "SpecAugment, mixup"
    assert described["external_data_usage"] == "directly"
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters())
    assert content["system"]["complexity"] == {
        "total_parameters": 62_474,
        "total_parameters_non_zero": nonzero,
        "model_size": 2 * nonzero / 1024,
    }
    assert f"{2 * nonzero} bytes" in text.splitlines()[0]
    plain = meta("Doe_XYZ_task1a_1", entry, model, 0, "SpecAugment", results)
    assert plain["system"]["description"]["decision_making"] is None


def test_what_a_run_was_trained_with(caplog: pytest.LogCaptureFixture) -> None:
    assert trained_with(WEIGHTS, None) == "SpecAugment"
    assert str(WEIGHTS) in caplog.text and "data_augmentation" in caplog.text
    caplog.clear()
    for preset, expected in (("ce_tta", "SpecAugment"), ("ce_mu_tta", "SpecAugment, mixup")):
        settings = Settings().override({"preset": preset})
        assert trained_with(WEIGHTS, {"preset": vars(settings.preset), "seed": 3}) == expected
    assert not caplog.text


NAMES = ["0.wav", "1.wav"]
P = [0.25, *9 * [0.75 / 9]]


def table(*rows: list[Any], header: tuple[str, ...] = HEADER) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in (header, *rows))


def test_outputs() -> None:
    found = [
        Prediction("bus", dict(zip(SCENES, (P[1], P[0], *P[2:]), strict=True)), []),
        Prediction("airport", dict(reversed(list(zip(SCENES, P, strict=True)))), []),
    ]
    text = output_table(NAMES, found)
    rows = [line.split("\t") for line in text.splitlines()]
    assert tuple(rows[0]) == HEADER
    assert rows[1][:2] == ["0.wav", "bus"] and rows[2][:2] == ["1.wav", "airport"]
    assert list(map(float, rows[2][2:])) == P
    check_output(table(["0.wav", "airport", *P], ["1.wav", "tram", *P[::-1]]), NAMES)


GOOD = ["0.wav", "airport", *P]


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([GOOD], "1 rows, the evaluation set 2 files"),
        ([GOOD, GOOD], "row 2 ('0.wav'): the evaluation set has '1.wav'"),
        ([["1.wav", *GOOD[1:]], GOOD], "row 1 ('1.wav')"),
        ([GOOD, ["1.wav", "Airport", *P]], "'Airport' is not one of airport, bus"),
        ([GOOD, ["1.wav", "bus", *P]], "'bus' is not the most probable"),
        ([GOOD, ["1.wav", "airport", *P[1:]]], "11 columns, not 12"),
        ([GOOD, ["1.wav", "airport", *P[:9], "x"]], "no number"),
        ([GOOD, ["1.wav", "airport", *P[:9], math.nan]], "not between 0 and 1"),
        ([GOOD, ["1.wav", "airport", *P[:9], -0.1]], "not between 0 and 1"),
        ([GOOD, ["1.wav", "airport", 1.5, *9 * [0]]], "not between 0 and 1"),
        ([GOOD, ["1.wav", "airport", 0.5, *P[1:]]], "sum to 1.25"),
    ],
)
def test_outputs_that_break_the_rules(rows: list[Any], part: str, refused: Refused) -> None:
    with refused(part):
        check_output(table(*rows), NAMES)


def test_columns_and_names_of_the_outputs(refused: Refused) -> None:
    header = (*HEADER[:2], *reversed(SCENES))
    with refused("columns are filename, scene_label, tram"):
        check_output(table(GOOD, header=header), ["0.wav"])
    with refused("the same name"):
        check_output(table(GOOD, GOOD), ["0.wav", "0.wav"])
