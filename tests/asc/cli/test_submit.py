"""From a data set to a submission: official names of TAU 2020 Mobile, made-up audio."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asc.cli.app import main
from asc.task import DEVICES, SCENES

LISTS = Path(__file__).parents[3].parent / "shared" / "lists" / "TAU2020"
LABEL = "Doe_XYZ_task1a_2"
AUTHORS = """\
name: A system of mine
abbreviation: mine
authors:
- lastname: Doe
  firstname: Jane
  email: jane@example.org
  affiliation: {abbreviation: XYZ, institute: "Institute of X", location: "Paris, France"}
source_code: https://example.org
"""
HEADER = "filename\tscene_label\n"

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


def official(split: str, per_scene: int) -> list[tuple[str, str]]:
    """So many files of each scene from an official list, each of another device; and their scenes.

    Without the lists, made-up names.
    """
    if not LISTS.is_dir():
        return [(f"audio/{scene}-{split}-{i}-0-{DEVICES[i]}.wav", scene)
                for scene in SCENES for i in range(per_scene)]  # fmt: skip
    by_scene: dict[str, dict[str, str]] = defaultdict(dict)
    with (LISTS / f"fold1_{split}.csv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            device = Path(row["filename"]).stem.rpartition("-")[2]
            by_scene[row["scene_label"]].setdefault(device, row["filename"])
    return [(path, scene) for scene, paths in by_scene.items()
            for path in list(paths.values())[:per_scene]]  # fmt: skip


def write_audio(wav: Wav, root: Path, files: list[tuple[str, str]]) -> None:
    for i, (path, scene) in enumerate(files):
        wav(root / path, hertz=100 * (1 + SCENES.index(scene)) + i)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, wav: Wav) -> Path:
    """A folder with development set, evaluation set, trained run, scores and authors."""
    root = tmp_path_factory.mktemp("work")
    development, evaluation = root / "development", root / "evaluation"
    for split, per_scene in (("train", 1), ("evaluate", 2)):
        files = official(split, per_scene)
        write_audio(wav, development, files)
        setup = development / "evaluation_setup"
        setup.mkdir(exist_ok=True)
        rows = "".join(f"{path}\t{scene}\n" for path, scene in files)
        (setup / f"fold1_{split}.csv").write_text(HEADER + rows)
    if LISTS.is_dir():
        (development / "meta.csv").symlink_to(LISTS / "meta.csv")
    files = [(f"audio/{i}.wav", SCENES[i]) for i in (7, 0, 3)]
    write_audio(wav, evaluation, files)
    (evaluation / "evaluation_setup").mkdir()
    rows = "".join(f"{path}\n" for path, _ in files)
    (evaluation / "evaluation_setup" / "fold1_test.csv").write_text("filename\n" + rows)
    (root / "authors.yaml").write_text(AUTHORS)

    run, scores = root / "run", root / "scores.json"
    recipe = "--preset", "ce_mu_tta", "--epochs", "1", "--batch-size", "5"
    assert main(["train", str(development), "--out", str(run), *recipe]) == 0
    weights, tta = str(run / "calibrated.pt"), ("--tta", "2")
    fitted = "--split", "train", "--out", weights, *tta
    assert main(["calibrate", str(run / "folded.pt"), str(development), *fitted]) == 0
    assert main(["evaluate", weights, str(development), "--json", str(scores), *tta]) == 0
    return root


def arguments(work: Path, **changes: object) -> list[str]:
    given = {
        "tta": 2, "results": work / "scores.json", "authors": work / "authors.yaml",
        "label": LABEL, "out": work / "submission",
    } | changes  # fmt: skip
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return ["submit", str(work / "run" / "calibrated.pt"), str(work / "evaluation"), *options]


def parsed(text: str) -> Any:
    """YAML of nested mappings and lists of mappings, by indentation; leaves are text."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]

    def block(depth: int) -> Any:
        found: Any = {}
        while lines:
            line = lines[0]
            indent = len(line) - len(line.lstrip(" "))
            if line[indent:].startswith("- ") and indent >= depth:
                found = found or []
                lines[0] = line.replace("- ", "  ", 1)
                found.append(block(indent + 2))
                continue
            if indent < depth:
                break
            lines.pop(0)
            key, _, value = line.strip().partition(":")
            nested = not value and lines and (
                lines[0].startswith(" " * (indent + 1)) or lines[0][indent:].startswith("- ")
            )  # fmt: skip
            under = indent if nested and lines[0][indent:].startswith("- ") else indent + 1
            found[key] = block(under) if nested else value.strip().strip("'")
        return found

    return block(0)


def test_a_submission(work: Path, asc_: Asc) -> None:
    code, output, error = asc_(*arguments(work))
    assert (code, error) == (0, "")
    table, meta = (work / "submission" / f"{LABEL}.{end}" for end in ("output.csv", "meta.yaml"))
    assert output.splitlines()[:2] == [str(table), str(meta)]
    assert sorted((work / "submission").iterdir()) == sorted([table, meta])

    header, *rows = (line.split("\t") for line in table.read_text().splitlines())
    assert header == ["filename", "scene_label", *SCENES]
    assert [row[0] for row in rows] == ["7.wav", "0.wav", "3.wav"]
    for row in rows:
        p = list(map(float, row[2:]))
        assert row[1] == SCENES[p.index(max(p))] and abs(sum(p) - 1) < 1e-9 and min(p) >= 0

    content = parsed(meta.read_text())
    assert content["submission"]["label"] == LABEL
    assert content["submission"]["name"] == "A system of mine"
    (author,) = content["submission"]["authors"]
    assert (author["lastname"], author["corresponding"]) == ("Doe", "true")
    assert author["affiliation"]["location"] == "Paris, France"
    described = content["system"]["description"]
    assert described["data_augmentation"] == "SpecAugment, mixup"
    assert (described["decision_making"], described["embeddings"]) == ("average", "null")
    complexity = content["system"]["complexity"]
    assert complexity["total_parameters"] == "62474"
    nonzero = int(complexity["total_parameters_non_zero"])
    assert float(complexity["model_size"]) == 2 * nonzero / 1024 <= 122.02
    assert content["system"]["source_code"] == "https://example.org"
    results = content["results"]["development_dataset"]
    assert list(results["class_wise"]) == list(SCENES)
    assert list(results["device_wise"]) == list(DEVICES)
    class_wise = [float(result["accuracy"]) for result in results["class_wise"].values()]
    assert float(results["overall"]["accuracy"]) == pytest.approx(sum(class_wise) / 10)
    seen = [name for name, result in results["device_wise"].items() if result["logloss"] != "null"]
    assert seen == ["a", "b"]


def test_probabilities_are_those_that_predict_prints(work: Path, asc_: Asc) -> None:
    """Of folded weights, which are float16 already."""
    assert asc_(*arguments(work, out=work / "again", seed=4))[0] == 0
    weights, evaluation = work / "run" / "calibrated.pt", work / "evaluation"
    _, lines, _ = asc_("predict", weights, evaluation, "--tta", 2, "--seed", 4, "--json")
    rows = (work / "again" / f"{LABEL}.output.csv").read_text().splitlines()[1:]
    for line, row in zip(lines.splitlines(), rows, strict=True):
        found = json.loads(line)
        assert row.split("\t")[1] == found["label"]
        assert list(map(float, row.split("\t")[2:])) == list(found["probabilities"].values())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"label": "mine"}, "Lastname_INSTITUTE_task1a_N"),
        ({"tta": 3}, "no scores under --tta 3"),
        ({"authors": "/no/such/file"}, "/no/such/file"),
        ({"results": "/no/such/file"}, "/no/such/file"),
        ({"out": "/proc/x"}, "/proc/x"),
    ],
)
def test_nothing_is_written_of_what_breaks_a_rule(
    work: Path, changes: dict[str, object], part: str, rejects: Rejects
) -> None:
    rejects(part, *arguments(work, **{"out": "here"} | changes))


def test_other_data_than_an_evaluation_set(
    work: Path, folders: Path, asc_: Asc, one_line: OneLine
) -> None:
    words = arguments(work)
    words[2] = str(folders)
    code, _, error = asc_(*words)
    assert code == 2
    one_line(error, folders, "TAU")
