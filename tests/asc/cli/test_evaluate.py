import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from asc import prediction
from asc.checkpoint import save_folded
from asc.model import Cnn6Sep
from asc.report.predictions import read_predictions

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("evaluate", "w", "d", "--split", "test"), "--split test has no labels"),
        (("evaluate", "w", "d", "--split", "test", "--out", "o", "--json", "-"), "without --json"),
        (("evaluate", "w", "d", "--out", "/proc/x"), "/proc/x"),
        (("evaluate", "w", "d", "--out", "-"), "expected a folder"),
        (("evaluate", "w", "d", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("evaluate", "w", "d", "--devices", "0"), "--devices"),
        (("evaluate", "w", "d", "--gain", "101"), "from -100 to 100 dB"),
        (("evaluate", "w", "d", "--tta", "some"), "an integer or auto, not 'some'"),
        (("evaluate", "w", "d", "--tta", "10001"), "10000"),
        (("evaluate", "w", "d", "--tta", "auto", "--tta-tolerance", "0"), "--tta-tolerance"),
        (("evaluate", "w", "d", "--json", "/no/such/folder/x.json"), "/no/such/folder/x.json"),
        (("evaluate", "w", "d", "--json", "/proc/x.json"), "/proc/x.json"),
        (("evaluate", "w", "d", "--json", "."), "is a folder"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)


@pytest.mark.parametrize("eps", ["-1", "nan"])
def test_bad_eps(eps: str, weights: Path, folders: Path, asc_: Asc, one_line: OneLine) -> None:
    code, _, error = asc_("evaluate", weights, folders, "--eps", eps)
    assert code == 2
    one_line(error, "eps")


@pytest.fixture
def classes(weights: Path, folders: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The weights, and recordings of two of their classes."""
    for name, clips in (("bus", "hum"), ("tram", "whistle")):
        for split in ("train", "evaluate"):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / name).symlink_to(folders / split / clips)
    return weights, tmp_path


def test_scores_to_standard_output(classes: tuple[Path, Path], asc_: Asc) -> None:
    """There they are alone: the tables go to stderr."""
    code, output, error = asc_("evaluate", *classes, "--json", "-")
    assert code == 0
    assert json.loads(output)["results"][0]["count"] == 2
    assert "By class" in error


def test_devices_share_the_clips(classes: tuple[Path, Path], asc_: Asc) -> None:
    answers = [
        asc_("evaluate", *classes, "--tta", 2, "--device", "cpu", "--devices", n, "--json", "-")
        for n in (1, 2)
    ]
    assert answers[0][0] == 0 and answers[0] == answers[1]
    results = json.loads(answers[0][1])["results"]
    assert [scores["tta"] for scores in results] == [0, 2]


def test_levels(classes: tuple[Path, Path], tmp_path: Path, asc_: Asc, one_line: OneLine) -> None:
    weights, data = classes
    code, _, error = asc_("evaluate", weights, data, "--gain", "auto")
    assert code == 2
    one_line(error, "--gain auto", "do not tell")
    model = Cnn6Sep()
    assert model.bn0.running_mean is not None
    model.bn0.running_mean.fill_(-10)
    save_folded(model, tmp_path / "w.pt")

    def scores(*options: object) -> tuple[Any, float, str]:
        code, output, error = asc_("evaluate", tmp_path / "w.pt", data, "--json", "-", *options)
        assert code == 0
        content = json.loads(output)
        return content["gain"], content["results"][0]["log_loss_macro"], error

    _, plain, error = scores()
    assert "2 of 2 recordings" in error and "-10.0 dB" in error
    for gain in ("auto", 20.0):
        told, loss, error = scores("--gain", gain)
        assert told == gain and loss != plain and "recordings" not in error


def test_an_interrupted_evaluation_goes_on(
    classes: tuple[Path, Path], asc_: Asc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the clip that is left, to the same scores, and leaves nothing behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(prediction, "batch_size", lambda frames, limit: 1)
    arguments = ("evaluate", *classes, "--tta", "2", "--tta-engine", "batched", "--json", "-")
    expected = asc_(*arguments)[:2]
    kept, masked, calls = tmp_path / "cache" / "asc", prediction.masked_logits, []
    assert expected[0] == 0 and not list(kept.iterdir())

    def interrupted(*args: Any, **options: Any) -> Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return masked(*args, **options)

    monkeypatch.setattr(prediction, "masked_logits", interrupted)
    assert asc_(*arguments)[0] == 130
    assert len(list(kept.iterdir())) == 1
    assert asc_(*arguments)[:2] == expected
    assert len(calls) == 3 and not list(kept.iterdir())


def test_both_engines_give_the_same_scores(
    classes: tuple[Path, Path], asc_: Asc, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    masked = Cnn6Sep.masked

    def spy(self: Cnn6Sep, *args: Any) -> Tensor:
        calls.append(self)
        return masked(self, *args)

    monkeypatch.setattr(Cnn6Sep, "masked", spy)
    answers = []
    for engine, shares in (("batched", False), ("shared", True)):
        calls.clear()
        options = "--tta", 3, "--device", "cpu", "--tta-engine", engine, "--json", "-"
        answers.append(asc_("evaluate", *classes, *options))
        assert bool(calls) == shares
    assert answers[0][0] == 0 and answers[0] == answers[1]


def test_as_many_masks_as_are_needed(classes: tuple[Path, Path], asc_: Asc) -> None:
    """How many they were is said for every clip, and does not depend on who computes them."""
    answers = [
        asc_(
            "evaluate", *classes, "--tta", "auto", "--tta-tolerance", 0.2, "--device", "cpu",
            "--devices", n, "--json", "-",
        )
        for n in (1, 2)
    ]  # fmt: skip
    assert answers[0][0] == 0 and answers[0] == answers[1]
    assert "masks, mean over clips" in answers[0][2]
    content = json.loads(answers[0][1])
    assert content["results"][1]["tta"] == {"tolerance": 0.2, "most": 1000}
    assert set(content["masks"].values()) <= set(range(20, 1001))
    assert all(Path(name).exists() for name in content["masks"])


def test_scores_are_seen_and_kept_where_the_file_cannot_be_written(
    classes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc
) -> None:
    # As if the disk had filled up since.
    monkeypatch.setattr("asc.files.check_file", lambda *paths: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, output, error = asc_("evaluate", *classes, "--json", "/proc/x.json")
    assert code == 2 and "By class" in output
    assert "/proc/x.json" in error and str(tmp_path) in error
    (kept,) = tmp_path.glob("asc-results-*.json")
    assert json.loads(kept.read_text())["results"][0]["count"] == 2


def test_results_are_there_whoever_reads_the_tables(
    classes: tuple[Path, Path], tmp_path: Path, asc_: Asc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("asc.report.tables.print_tables", gone)
    with pytest.raises(SystemExit):
        asc_("evaluate", *classes, "--out", tmp_path / "out", "--no-audio")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"predictions.csv", "scores.json", "report.html"}


def test_a_part_of_the_clips_is_called_a_part(
    weights: Path, tmp_path: Path, asc_: Asc, wav: Wav
) -> None:
    """One folder per class: by default a fifth of the clips is scored; a class of one is enough."""
    for scene in ("bus", "tram"):
        for i in range(5):
            wav(tmp_path / "data" / scene / f"{i}.wav", 100 + 100 * i)

    def clips_scored(*options: object) -> tuple[str, str]:
        code, output, error = asc_("evaluate", weights, tmp_path / "data", *options)
        assert code == 0, error
        (row,) = re.findall(r"^\W*clips\W+(\d.*?)\W*$", output, re.MULTILINE)
        return row, error

    row, error = clips_scored()
    assert row == "2 of 10" and "2 of 10 clips" in error and "--split all" in error
    row, error = clips_scored("--split", "train")
    assert row == "8 of 10" and "8 of 10 clips" in error
    assert clips_scored("--split", "all") == ("10", "")

    wav(tmp_path / "data" / "park" / "0.wav")
    code, _, error = asc_("evaluate", weights, tmp_path / "data")
    assert code == 2 and "'all'" in error
    assert clips_scored("--split", "all") == ("11", "")


def test_a_folder_of_results(classes: tuple[Path, Path], asc_: Asc, tmp_path: Path) -> None:
    """The scores are those of --json, the predictions those with masks."""
    out = tmp_path / "out"
    code, output, error = asc_(
        "evaluate", *classes, "--tta", 2, "--out", out, "--no-audio", "--json", tmp_path / "x.json"
    )
    assert code == 0, error
    assert "report.html" in output.splitlines()[-1]
    assert (out / "scores.json").read_bytes() == (tmp_path / "x.json").read_bytes()
    scores = json.loads((out / "scores.json").read_text())
    found = read_predictions(out)
    assert found.filenames == ("evaluate/bus/0.wav", "evaluate/tram/0.wav")
    assert found.labels == (1, 9)
    p = found.probabilities[[0, 1], [1, 9]]
    assert scores["results"][1]["log_loss_samples"] == pytest.approx(-np.log(p).mean())
    page = (out / "report.html").read_text()
    assert f"{scores['results'][1]['log_loss_samples']:.3f}" in page and "<audio" not in page


def test_clips_without_labels_are_predicted(
    weights: Path, tmp_path: Path, asc_: Asc, one_line: OneLine, wav: Wav
) -> None:
    """As `asc predict` does it; beside scores of others the predictions would mislead."""
    names = [f"audio/bus-oslo-1-{i}-s5.wav" for i in range(2)]
    for name in names:
        wav(tmp_path / "set" / name)
    (tmp_path / "set" / "evaluation_setup").mkdir()
    table = tmp_path / "set" / "evaluation_setup" / "fold1_test.csv"
    table.write_text("\n".join(["filename", *names]) + "\n")
    out = tmp_path / "out"
    asked = ("evaluate", weights, tmp_path / "set", "--split", "test", "--tta", 2, "--out", out)
    code, output, error = asc_(*asked)
    assert code == 0, error
    assert "predictions.csv; no scores" in output
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]
    found = read_predictions(out)
    assert (found.filenames, found.labels) == (tuple(names), (None, None))
    assert (found.devices, found.cities) == (("s5", "s5"), ("oslo", "oslo"))
    _, lines, _ = asc_("predict", weights, tmp_path / "set", "--tta", 2, "--json")
    for line, row in zip(lines.splitlines(), found.probabilities.tolist(), strict=True):
        assert list(json.loads(line)["probabilities"].values()) == row

    (out / "scores.json").write_text("{}")
    code, _, error = asc_(*asked)
    assert code == 2
    one_line(error, "scores.json", "another folder")
