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

import asc.data
import asc.demo
import fastsep
from asc.checkpoint import load_model, save_folded
from asc.cli import main
from asc.data import SCENES
from asc.demo import Size
from asc.eager import EagerTwin
from asc.model import Cnn6Sep

SHARED = Path(__file__).parents[2].parent / "shared"
Asc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def asc_(capsys: pytest.CaptureFixture[str]) -> Asc:
    """Runs the command: f(arguments...) -> exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def wav(path: Path, hertz: float = 440.0, seconds: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * 44_100)) / 44_100
    noise = np.random.default_rng(int(hertz)).normal(0, 0.01, len(t))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * t) + noise, 44_100)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "folded.pt"
    save_folded(Cnn6Sep(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two training clips and one evaluation clip each."""
    root = tmp_path_factory.mktemp("folders")
    for i, name in enumerate(("hum", "whistle")):
        for split, clips in (("train", 2), ("evaluate", 1)):
            for clip in range(clips):
                wav(root / split / name / f"{clip}.wav", hertz=100 * 20**i + 10 * clip)
    return root


def assert_one_line(error: str, *parts: object) -> None:
    assert error.startswith("asc: ") and error.count("\n") == 1, error
    for part in parts:
        assert str(part) in error, error


def test_from_training_to_prediction(folders: Path, tmp_path: Path, asc_: Asc) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    options = ("--epochs", 1, "--batch-size", 2, "--preset", "fl_tta", "--cache", cache)
    code, _, error = asc_("train", folders, "--out", run, *options, "--precision", "bf16")
    assert code == 0, error
    config = json.loads((run / "config.json").read_text())
    assert config["preset"]["loss"] == "focal" and config["precision"] == "bf16"

    code, _, error = asc_("train", folders, "--out", run)
    assert code == 2
    assert_one_line(error, run, "not empty")
    code, _, error = asc_("train", folders, "--out", run, "--resume", "--epochs", 3)
    assert code == 2
    assert_one_line(error, run, "--epochs")
    code, _, error = asc_("train", folders, "--out", run, "--resume", "--precision", "float32")
    assert code == 2
    assert_one_line(error, run, "--precision")
    assert asc_("train", folders, "--out", run, "--resume", "--cache", cache)[0] == 0

    results = tmp_path / "results.json"
    options = ("--tta", 2, "--seed", 1, "--json", results, "--cache", cache)
    options += ("--precision", "bf16")
    code, output, error = asc_("evaluate", run / "best.ckpt", folders, *options)
    assert code == 0, error
    assert "hum" in output and "whistle" in output and "2 TTA" in output
    content = json.loads(results.read_text())
    assert [system["tta"] for system in content["results"]] == [0, 2]
    assert all(system["count"] == 2 for system in content["results"])
    assert content["precision"] == "bf16"
    assert asc_("evaluate", run / "best.ckpt", folders, "--eps", 0, "--cache", cache)[0] == 0
    code, _, error = asc_("evaluate", run / "folded.pt", folders, "--eps", 0)
    assert code == 2
    assert_one_line(error, "folded.pt", "eps")

    clip = folders / "evaluate" / "hum" / "0.wav"
    code, output, _ = asc_("predict", run / "folded.pt", clip, "--json")
    assert code == 0
    assert json.loads(output)["probabilities"].keys() == {"hum", "whistle"}


def test_predict(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc) -> None:
    monkeypatch.chdir(tmp_path)
    files = [wav(Path("one.wav")), wav(Path("[bold]two.wav"), 2000)]
    code, output, error = asc_("predict", weights, *files, "--json")
    assert code == 0 and error == ""
    results = [json.loads(line) for line in output.splitlines()]
    assert [result["file"] for result in results] == [str(file) for file in files]
    for result in results:
        assert result.keys() == {"file", "label", "probabilities", "logits"}
        assert tuple(result["probabilities"]) == SCENES
        p = torch.tensor(list(result["probabilities"].values()), dtype=torch.float64)
        logits = torch.tensor(result["logits"], dtype=torch.float64)
        torch.testing.assert_close(p, logits.softmax(0), rtol=1e-12, atol=0)
        assert result["label"] == SCENES[int(p.argmax())]

    code, output, error = asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 4)
    assert code == 0
    augmented = [json.loads(line) for line in output.splitlines()]
    assert [r["logits"] for r in augmented] == [r["logits"] for r in results]
    assert [r["probabilities"] for r in augmented] != [r["probabilities"] for r in results]
    assert output == asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 4)[1]
    assert output != asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 5)[1]

    rounded = asc_("predict", weights, *files, "--json", "--precision", "bf16")[1]
    for line, result in zip(rounded.splitlines(), results, strict=True):
        assert json.loads(line)["logits"] == pytest.approx(result["logits"], rel=0.05, abs=0.01)

    code, output, _ = asc_("predict", weights, *files)
    assert code == 0
    for part in ("one.wav", "[bold]two.wav", results[0]["label"]):
        assert part in output


def test_predict_prints_nothing_unless_all_files_are_good(
    weights: Path, tmp_path: Path, asc_: Asc
) -> None:
    good, corrupt, silent = wav(tmp_path / "good.wav"), tmp_path / "corrupt.wav", tmp_path / "n.wav"
    corrupt.write_bytes(good.read_bytes()[:20])
    soundfile.write(silent, np.full(44_100, np.nan), 44_100, subtype="FLOAT")
    for bad in (corrupt, silent, tmp_path / "missing.wav", tmp_path):
        for options in ((), ("--json",)):
            code, output, error = asc_("predict", weights, good, bad, *options)
            assert (code, output) == (2, "")
            assert_one_line(error, bad)


def test_bad_weights(tmp_path: Path, asc_: Asc) -> None:
    clip, text = wav(tmp_path / "good.wav"), tmp_path / "text.pt"
    text.write_text("no weights")
    for bad in (text, tmp_path / "missing.pt", tmp_path):
        for arguments in (("predict", bad, clip), ("info", bad), ("evaluate", bad, tmp_path)):
            code, output, error = asc_(*arguments)
            assert (code, output) == (2, "")
            assert_one_line(error, bad)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("predict", "w", "a", "--tta", "-1"), "--tta"),
        (("predict", "w", "a", "--seed", "-1"), "--seed"),
        (("predict", "w"), "audio"),
        (("predict", "w", "a", "--device", "abacus"), "--device"),
        (("evaluate", "w", "d", "--split", "test"), "--split"),
        (("train", "d", "--out", "new", "--precision", "fp16"), "--precision"),
        (("train", "d", "--out", "new", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("evaluate", "w", "d", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("predict", "w", "a", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("evaluate", "w", "d", "--json", "/no/such/folder/x.json"), "/no/such/folder/x.json"),
        (("train", "d"), "--out"),
        (("train", "d", "--out", "new", "--preset", "x"), "'x'"),
        (("train", "d", "--out", "new", "--epochs", "0"), "--epochs"),
        (("train", "no-such-data", "--out", "new"), "no-such-data"),
        (("train", "d", "--out", "new", "--resume"), "new"),
        (("synth", "new", "--clips-per-scene", "1"), "clips"),
        (("synth", "new", "--seconds", "nan"), "seconds"),
        (("no-such-command",), "no-such-command"),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asc_: Asc,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, error = asc_(*arguments)
    assert (code, output) == (2, "")
    assert_one_line(error, part)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("eps", ["-1", "nan"])
def test_bad_eps(eps: str, weights: Path, folders: Path, asc_: Asc) -> None:
    code, _, error = asc_("evaluate", weights, folders, "--eps", eps)
    assert code == 2
    assert_one_line(error, "eps")


def test_failures_of_the_system(monkeypatch: pytest.MonkeyPatch, asc_: Asc) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/where")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asc.data, "write_synthetic", denied)
    assert asc_("synth", "x") == (2, "", "asc: /some/where: Permission denied\n")
    monkeypatch.setattr(asc.data, "write_synthetic", interrupted)
    assert asc_("synth", "x")[0] == 130


def test_info_counts(weights: Path, asc_: Asc) -> None:
    code, output, _ = asc_("info", weights)
    assert code == 0
    for part in ("62 474", "64 330", "124948 B", "124.95 KB of 1000 B", "122.02 KB of 1024 B"):
        assert part in output
    nonzero = sum(int(p.count_nonzero()) for p in load_model(weights).parameters())
    assert f"as float16: {nonzero}" in output


def test_synth(tmp_path: Path, asc_: Asc) -> None:
    arguments = ("synth", tmp_path / "data", "--clips-per-scene", 2, "--seconds", 0.1, "--seed", 1)
    assert asc_(*arguments)[0] == 0
    assert len(list((tmp_path / "data" / "audio").glob("*.wav"))) == 20
    code, _, error = asc_(*arguments)
    assert code == 2
    assert_one_line(error, tmp_path / "data", "not empty")


def test_help_and_version_are_quick(asc_: Asc) -> None:
    code, output, _ = asc_("--help")
    assert code == 0
    for command in ("demo", "synth", "train", "evaluate", "predict", "info"):
        assert command in output
        assert asc_(command, "--help")[0] == 0
    code, output, _ = asc_("--version")
    assert code == 0 and output.startswith(f"asc {fastsep.__version__}")
    check = "import sys, asc.cli; sys.exit('torch' in sys.modules)"
    path = str(Path(asc.data.__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", check], env={"PYTHONPATH": path}).returncode == 0


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc) -> None:
    monkeypatch.setattr(asc.demo, "COMPILED", Size(clips_per_scene=2, epochs=1))
    monkeypatch.setattr(asc.demo, "UNCOMPILED", Size(clips_per_scene=2, epochs=1))
    monkeypatch.setattr(asc.demo, "TTA", 2)
    monkeypatch.setattr(asc.demo, "compare_speed", lambda model: (3.0, 1.0, "not measured"))
    out = tmp_path / "demo"
    code, output, error = asc_("demo", "--out", out)
    assert code == 0, error
    for part in ("ynthetic", "2 TTA", "shopping_mall", "s6", "3.0 times as long (not measured)"):
        assert part in output
    assert (out / "report.txt").read_text() == output
    results = json.loads((out / "results.json").read_text())
    assert results["scores"].keys() == {"no TTA", "2 TTA"}
    assert load_model(out / "run" / "folded.pt").classes == SCENES
    code, _, error = asc_("demo", "--out", out)
    assert code == 2
    assert_one_line(error, out, "not empty")


def test_eager_twin_computes_the_same() -> None:
    torch.manual_seed(0)
    model = Cnn6Sep().double().folded()
    x = torch.randn(2, 1, 33, 256, dtype=torch.float64)
    torch.testing.assert_close(EagerTwin(model)(x), model(x), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no recordings here")
def test_released_weights_name_the_recordings(asc_: Asc) -> None:
    files = sorted((SHARED / "audio").glob("*.wav"))
    code, output, error = asc_("predict", SHARED / "upstream" / "ce_tta.pth", *files, "--json")
    assert (code, error) == (0, "")
    labels = [json.loads(line)["label"] for line in output.splitlines()]
    assert labels == ["metro_station", "street_traffic"]
    assert [SCENES.index(label) for label in labels] == [3, 8]


@pytest.mark.parametrize("name", ["FASTSEP_BACKEND", "FASTSEP_CPU_ISA"])
def test_environment_that_asks_for_the_impossible(name: str, tmp_path: Path) -> None:
    if name == "FASTSEP_CPU_ISA" and not fastsep.backends()["cpu"].available:
        pytest.skip("only the C++ kernels have instruction sets")
    program = "import sys; from asc.cli import main; sys.exit(main(['info', 'x.ckpt']))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {name: "abacus"},
    )
    assert run.returncode == 2
    assert "abacus" in run.stderr
    assert len(run.stderr.splitlines()) == 1
