import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asc.task import SCENES

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]

SHARED = Path(__file__).parents[3].parent / "shared"


def test_predict(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc, wav: Wav
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [wav(Path("one.wav")), wav(Path("[bold]two.wav"), 2000)]
    code, output, error = asc_("predict", weights, *files, "--json")
    assert code == 0 and error == ""
    results = [json.loads(line) for line in output.splitlines()]
    assert [result["file"] for result in results] == [str(file) for file in files]
    for result in results:
        assert result.keys() == {"file", "label", "probabilities", "logits", "masks"}
        assert result["masks"] == 0
        assert tuple(result["probabilities"]) == SCENES
        p = torch.tensor(list(result["probabilities"].values()), dtype=torch.float64)
        logits = torch.tensor(result["logits"], dtype=torch.float64)
        torch.testing.assert_close(p, logits.softmax(0), rtol=1e-12, atol=0)
        assert result["label"] == SCENES[int(p.argmax())]

    code, output, error = asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 4)
    assert code == 0
    augmented = [json.loads(line) for line in output.splitlines()]
    assert all(r["masks"] == 3 for r in augmented)
    assert [r["logits"] for r in augmented] == [r["logits"] for r in results]
    assert [r["probabilities"] for r in augmented] != [r["probabilities"] for r in results]
    assert output == asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 4)[1]
    assert output != asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 5)[1]

    options = ("--json", "--tta", 3, "--device", "cpu", "--devices")
    one, two = (asc_("predict", weights, *files, *options, devices) for devices in (1, 2))
    assert one[0] == 0 and one == two

    rounded = asc_("predict", weights, *files, "--json", "--precision", "bf16")[1]
    for line, result in zip(rounded.splitlines(), results, strict=True):
        assert json.loads(line)["logits"] == pytest.approx(result["logits"], rel=0.05, abs=0.01)

    code, output, _ = asc_("predict", weights, *files)
    assert code == 0
    for part in ("one.wav", "[bold]two.wav", results[0]["label"]):
        assert part in output


def test_locales_and_names_that_are_not_utf_8(weights: Path, tmp_path: Path, wav: Wav) -> None:
    clip = wav(tmp_path / "clip.wav")
    names = [b"\xff.wav", "\u00fc.wav".encode()]
    for name in names:
        os.link(clip, os.fsencode(tmp_path) + b"/" + name)
    run = subprocess.run(
        [sys.executable, "-m", "asc", "predict", weights, *names],
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for name in ("\\ufffd.wav", "\\xfc.wav"):
        assert name in run.stdout


def test_predict_a_data_set(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc, wav: Wav
) -> None:
    monkeypatch.chdir(tmp_path)
    wav(Path("set/audio/0.wav"))
    Path("set/evaluation_setup").mkdir()
    Path("set/evaluation_setup/fold1_test.csv").write_text("filename\naudio/0.wav\n")
    code, output, _ = asc_("predict", weights, "set", "--json")
    assert code == 0 and json.loads(output)["file"] == "set/audio/0.wav"


def test_a_file_is_named_alike_wherever_it_stands(
    weights: Path, tmp_path: Path, asc_: Asc, wav: Wav
) -> None:
    files = [
        wav(tmp_path / folder / f"{hertz}.wav", hertz) for hertz in (300, 900) for folder in "ab"
    ]
    options = ("--json", "--tta", 3)

    def answers(*paths: Path) -> dict[str, object]:
        lines = asc_("predict", weights, *paths, *options)[1].splitlines()
        return {found["file"]: found["probabilities"] for found in map(json.loads, lines)}

    expected = answers(*files)
    assert answers(*files[::-1]) == expected and len(expected) == 4
    assert answers(files[2]) == {str(files[2]): expected[str(files[2])]}
    a, again, other, _ = expected.values()
    assert a == again != other  # folders do not count


def test_predict_prints_nothing_unless_all_files_are_good(
    weights: Path, tmp_path: Path, asc_: Asc, one_line: OneLine, wav: Wav
) -> None:
    good, corrupt, silent = wav(tmp_path / "good.wav"), tmp_path / "corrupt.wav", tmp_path / "n.wav"
    corrupt.write_bytes(good.read_bytes()[:20])
    soundfile.write(silent, np.full(44_100, np.nan), 44_100, subtype="FLOAT")
    for bad in (corrupt, silent, tmp_path / "missing.wav", tmp_path):
        for options in ((), ("--json",)):
            code, output, error = asc_("predict", weights, good, bad, *options)
            assert (code, output) == (2, "")
            one_line(error, bad)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("predict", "w", "a", "--tta", "-1"), "--tta"),
        (("predict", "w", "a", "--tta", "1000000000"), "10000"),
        (("predict", "w", "a", "--seed", "-1"), "--seed"),
        (("predict", "w"), "audio"),
        (("predict", "w", "a", "--device", "abacus"), "--device"),
        (("predict", "w", "a", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("predict", "w", "a", "--devices", "0"), "--devices"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no recordings here")
def test_released_weights_name_the_recordings(asc_: Asc) -> None:
    files = sorted((SHARED / "audio").glob("*.wav"))
    code, output, error = asc_("predict", SHARED / "upstream" / "ce_tta.pth", *files, "--json")
    assert (code, error) == (0, "")
    labels = [json.loads(line)["label"] for line in output.splitlines()]
    assert labels == ["metro_station", "street_traffic"]
    assert [SCENES.index(label) for label in labels] == [3, 8]
