import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pytest
import torch
from typer.main import get_command

import asc.__main__
import asc.data
import fastsep
from asc.cli.app import app, main

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]

GROUP: Any = get_command(app)
COMMANDS = tuple(GROUP.commands)
OPTIONS: dict[str, list[Any]] = {
    name: [option for option in command.params if option.opts[0].startswith("-")]
    for name, command in GROUP.commands.items()
}


def kind(option: Any) -> set[Any]:
    """The types of an option's values; None is that of an option that was not given."""
    annotation = option.type_descriptor.annotation
    return {*(get_args(annotation) if NoneType in get_args(annotation) else [annotation])} - {
        NoneType
    }


def test_from_training_to_prediction(
    folders: Path, tmp_path: Path, asc_: Asc, one_line: OneLine
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    options = ("--epochs", 1, "--batch-size", 2, "--preset", "fl_tta", "--cache", cache)
    code, output, error = asc_("train", folders, "--out", run, *options, "--precision", "bf16")
    assert code == 0, error
    *scores, kept, following = output.splitlines()
    for name, line in zip(("last", "best"), scores, strict=True):
        assert re.fullmatch(rf"{name} epoch, 1: .* log loss \d\.\d+, accuracy \d+\.\d %", line)
    assert f"{run / 'folded.pt'}: " in kept and "last epoch" in kept
    assert following == f"asc evaluate {run / 'folded.pt'} {folders} --tta 30"
    config = json.loads((run / "config.json").read_text())
    assert config["preset"]["loss"] == "focal" and config["precision"] == "bf16"

    code, _, error = asc_("train", folders, "--out", run)
    assert code == 2
    one_line(error, run, "not empty")
    code, _, error = asc_("train", folders, "--out", run, "--resume", "--batch-size", 1)
    assert code == 2
    one_line(error, run, "--batch-size")
    code, _, error = asc_("train", folders, "--out", run, "--resume", "--precision", "float32")
    assert code == 2
    one_line(error, run, "--precision")
    assert asc_("train", folders, "--out", run, "--resume", "--cache", cache)[0] == 0
    assert asc_("train", folders, "--out", run, "--resume", "--epochs", 2)[0] == 0
    assert json.loads((run / "config.json").read_text())["preset"]["epochs"] == 2

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
    one_line(error, "folded.pt", "eps")

    clip = folders / "evaluate" / "hum" / "0.wav"
    code, output, _ = asc_("predict", run / "folded.pt", clip, "--json")
    assert code == 0
    assert json.loads(output)["probabilities"].keys() == {"hum", "whistle"}


def test_bad_weights(tmp_path: Path, asc_: Asc, one_line: OneLine, wav: Wav) -> None:
    clip, text = wav(tmp_path / "good.wav"), tmp_path / "text.pt"
    text.write_text("no weights")
    for bad in (text, tmp_path / "missing.pt", tmp_path):
        for arguments in (("predict", bad, clip), ("info", bad), ("evaluate", bad, tmp_path)):
            code, output, error = asc_(*arguments)
            assert (code, output) == (2, "")
            one_line(error, bad)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("no-such-command",), "no-such-command"),
        (("evaluate", "w", "d", "--tta", "-1"), "'--tta': it must be at least 0, not '-1'"),
        (
            ("evaluate", "w", "d", "--tta", "99999"),
            "'--tta': it must be at most 10000, not '99999'",
        ),
        (("evaluate", "w", "d", "--seed", "many"), "'--seed': it must be an integer, not 'many'"),
        (("evaluate", "w", "d", "--seed", "1.5"), "'--seed': it must be an integer, not '1.5'"),
        (("evaluate", "w", "d", "--eps", "tiny"), "'--eps': it must be a number, not 'tiny'"),
        (
            ("evaluate", "w", "d", "--device", "gpu"),
            "'--device': 'gpu' is not one of 'auto', 'cpu'",
        ),
        (
            ("train", "d", "--out", "o", "--epochs", "0"),
            "'--epochs': it must be at least 1, not '0'",
        ),
        (("train", "d", "--out", "o", "--workers", "999"), "it must be at most 256, not '999'"),
        (("evaluate", "w"), "'data'"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)


def test_failures_of_the_system(monkeypatch: pytest.MonkeyPatch, asc_: Asc) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/where")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asc.data, "write_synthetic", denied)
    assert asc_("synth", "x") == (2, "", "asc: /some/where: Permission denied\n")
    monkeypatch.setattr(asc.data, "write_synthetic", interrupted)
    assert asc_("synth", "x")[0] == 130

    def named_in_bytes(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", b"/some/where")

    monkeypatch.setattr(asc.data, "write_synthetic", named_in_bytes)
    assert asc_("synth", "x") == (2, "", "asc: /some/where: Permission denied\n")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        MemoryError("Unable to allocate 9 GiB for an array"),
        MemoryError(),
        RuntimeError("something else"),
    ],
    ids=["cpu", "cuda", "numpy", "python", "other"],
)
def test_no_memory(
    error: Exception, monkeypatch: pytest.MonkeyPatch, asc_: Asc, one_line: OneLine
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asc.data, "write_synthetic", fail)
    if str(error) == "something else":  # a fault of ours keeps its traceback
        with pytest.raises(RuntimeError):
            asc_("synth", "x")
        return
    code, output, said = asc_("synth", "x")
    assert (code, output) == (2, "")
    one_line(said, "not enough memory")
    assert ".cpp" not in said


def test_help_and_version_are_quick(asc_: Asc) -> None:
    code, output, _ = asc_("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in output
        assert asc_(command, "--help")[0] == 0
    code, output, _ = asc_("--version")
    assert code == 0 and output.startswith(f"asc {fastsep.__version__}")
    check = "import sys, asc.cli.app; sys.exit('torch' in sys.modules)"
    path = str(Path(asc.data.__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", check], env={"PYTHONPATH": path}).returncode == 0


def test_alone_it_is_its_help(monkeypatch: pytest.MonkeyPatch, asc_: Asc) -> None:
    shown = asc_("--help")
    assert asc_() == shown and shown[::2] == (0, "")
    monkeypatch.setattr("sys.argv", ["asc"])
    assert main() == 0


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, monkeypatch: pytest.MonkeyPatch, asc_: Asc) -> None:
    """-h is --help; flags have no type; paragraphs are broken once, at the width of the screen."""
    monkeypatch.setenv("COLUMNS", "80")
    words = (command,) if command else ()
    code, output, _ = asc_(*words, "-h")
    assert code == 0 and output == asc_(*words, "--help")[1]
    assert (
        not re.search(r"bool|\brange>|int\s+range", output)
        and "..." not in output.partition("Commands:")[2]
    )
    about = output.split("\n\n")[1:]
    for paragraph in about[: next(i for i, text in enumerate(about) if ":\n" in text)]:
        lines = paragraph.splitlines()
        for line, following in pairwise(lines):  # the next word would not have fitted
            assert len(line) + 1 + len(following.split()[0]) > 78, paragraph


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch, asc_: Asc) -> None:
    """Of options that there are, with all that are required."""
    monkeypatch.setenv("COLUMNS", "80")
    output = asc_(command, "--help")[1]
    about = output.partition("\nArguments:")[0].partition("\nOptions:")[0]
    _, _, example = about.partition("\n  Example")
    lines = re.sub(r"\n {6,}", " ", example).splitlines()  # those that go on are indented more
    shown = [line.split() for line in lines if line.startswith(f"    asc {command} ")]
    assert shown or f"    asc {command}" in lines
    known = {name for option in OPTIONS[command] for name in option.opts}
    required = {option.opts[0] for option in OPTIONS[command] if option.required}
    for words in shown:
        given = {word for word in words if word.startswith("--")}
        assert required <= given <= known


# An option takes the same values and says the same wherever it stands, but for these.
OWN = {
    "--out": "what a command leaves there",
    "--json": "predict prints a line a file as it goes, others write one file",
    "--cache": "training keeps log-mels in memory without it, others none",
    "--precision": "of training, or of inference",
    "--split": "clips to score, or to calibrate on",
    "--tta": "calibration has no number of masks that depends on the clip",
}


@pytest.mark.parametrize(
    "name", sorted({o.opts[0] for options in OPTIONS.values() for o in options})
)
def test_an_option_means_the_same_in_all_commands(name: str) -> None:
    found = [option for options in OPTIONS.values() for option in options if option.opts[0] == name]
    assert all(option.opts == found[0].opts for option in found)
    meanings = {(o.help, o.metavar, o.is_flag, frozenset(kind(o))) for o in found}
    assert (len(meanings) > 1) == (name in OWN)


def test_exit_codes_stand_in_the_help(asc_: Asc) -> None:
    """Which are given by the tests of failures."""
    codes = asc_("--help")[1].partition("Exit codes:\n")[2]
    assert re.findall(r"^ {4}(\d+) ", codes, re.MULTILINE) == ["0", "2", "130", "1"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown(shell: str) -> None:
    variables = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "asc", "--show-completion", shell],
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )
    assert run.returncode == 0 and "_ASC_COMPLETE" in run.stdout


def test_completion(tmp_path: Path) -> None:
    def asc_(*arguments: str, **variables: str) -> str:
        command = [sys.executable, "-m", "asc", *arguments]
        fixed = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        environment = os.environ | fixed | variables  # else the shell is looked for among parents
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    assert "asc.sh" in asc_("--install-completion", "bash")
    assert "_ASC_COMPLETE" in (tmp_path / ".bash_completions" / "asc.sh").read_text()
    words = {"_ASC_COMPLETE": "complete_bash", "COMP_WORDS": "asc ev", "COMP_CWORD": "1"}
    assert asc_(**words) == "evaluate\n"


@pytest.mark.parametrize("package", ["typer", "rich", "soundfile", "torchaudio", "lightning"])
def test_without_the_extra(package: str, tmp_path: Path, weights: Path) -> None:
    program = "import sys; sys.modules[sys.argv.pop(1)] = None; import asc.__main__ as asc; "
    program += "sys.exit(asc.main())"
    arguments = {"lightning": ("train", tmp_path, "--out", "x")}.get(
        package, ("evaluate", weights, tmp_path)
    )
    run = subprocess.run(
        [sys.executable, "-c", program, package, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr == f"asc: needs the package '{package}': pip install 'fastsep[asc]'\n"


def test_the_script_says_so_too() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["asc"].partition(":")
    assert getattr(importlib.import_module(module), name) is asc.__main__.main


@pytest.mark.parametrize("name", ["FASTSEP_BACKEND", "FASTSEP_CPU_ISA"])
def test_environment_that_asks_for_the_impossible(name: str, tmp_path: Path) -> None:
    if name == "FASTSEP_CPU_ISA" and not fastsep.backends()["cpu"].available:
        pytest.skip("only the C++ kernels have instruction sets")
    program = "import sys; from asc.cli.app import main; sys.exit(main(['info', 'x.ckpt']))"
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


def test_module_is_the_command_too() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "asc", "no-such-command"], capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stderr.startswith("asc: ")
