"""What README and docs show works: Python blocks run, commands and options exist."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


class Block(nn.Module):
    """A separable block in other people's words."""

    def __init__(self, cin: int, cout: int, dilations: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        a, b = dilations
        self.conv = nn.Conv2d(cin, cout, 1, bias=False)
        self.sp_conv1 = nn.Conv2d(cout, cout, (3, 1), padding=(a, 0), dilation=(a, 1),
                                  groups=cout, bias=False)  # fmt: skip
        self.sp_conv2 = nn.Conv2d(cout, cout, (1, 3), padding=(0, b), dilation=(1, b),
                                  groups=cout, bias=False)  # fmt: skip
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = torch.relu(self.bn(self.sp_conv1(x) + self.sp_conv2(x)))
        return nn.functional.avg_pool2d(x, 2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.conv3 = Block(64, 128), Block(128, 128)
        self.conv4 = Block(128, 128, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv4(self.conv3(self.conv2(x)))


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[dict[str, Any], str]]:
    """Runs code in a fresh namespace and a folder of its own; gives what it defines and prints."""
    monkeypatch.chdir(tmp_path)

    def run(code: str) -> tuple[dict[str, Any], str]:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, "README.md", "exec"), namespace)
        return namespace, capsys.readouterr().out

    return run


def block_with(text: str) -> str:
    (found,) = (block for block in BLOCKS if text in block)
    return found


def test_my_own_model(run: Callable[[str], tuple[dict[str, Any], str]]) -> None:
    model = Model()
    torch.save(model, "my_model.pt")
    code = block_with("my_model.pt")
    namespace, printed = run(code)
    # What it prints stands beside it, as a comment.
    shown = re.findall(r"# +((?:fused|left alone) .*)", code)
    assert [line.strip() for line in printed.splitlines()] == shown
    x = torch.randn(1, 64, 17, 16)
    expected = model.eval()(x)
    assert type(namespace["model"].conv2) is Block  # unfused again
    assert not any(isinstance(m, fastsep.SepConv2d) for m in namespace["plain"].modules())
    for name in ("model", "plain"):
        torch.testing.assert_close(namespace[name](x), expected, rtol=1e-4, atol=1e-5)


def test_my_own_audio(run: Callable[[str], tuple[dict[str, Any], str]]) -> None:
    soundfile = pytest.importorskip("soundfile")
    from asc.checkpoint import save_folded
    from asc.model import Cnn6Sep

    torch.manual_seed(0)
    model = Cnn6Sep().eval()
    save_folded(model, "weights.ckpt")
    soundfile.write("street.wav", 0.1 * torch.randn(441_000).numpy(), 44_100)
    namespace, printed = run(block_with("street.wav"))
    assert namespace["logmel"].shape == (1, 1, 431, 256)
    probabilities = eval(printed)
    assert set(probabilities) == set(model.classes)
    assert sum(probabilities.values()) == pytest.approx(1, abs=0.01)


def test_every_block_is_run_by_a_test() -> None:
    assert len(BLOCKS) == 2


# Commands.

DOCUMENTS = "\n".join([README, *(path.read_text() for path in sorted(ROOT.glob("docs/*.md")))])
CODE = re.findall(r"^    (\S.*)$|`([^`\n]+)`", DOCUMENTS, re.MULTILINE)
SHELL = [re.sub(r"\s+#.*", "", indented or quoted) for indented, quoted in CODE]
ASC = [line.split() for line in SHELL if re.match(r"asc \w", line)]


def options_of(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


@pytest.mark.parametrize("words", ASC, ids=" ".join)
def test_commands_of_asc_exist(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    from asc.cli.app import main

    monkeypatch.setenv("COLUMNS", "200")
    assert main([words[1], "--help"]) == 0
    missing = options_of(words) - set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert not missing


def test_there_are_commands_to_look_at() -> None:
    assert {words[1] for words in ASC} >= {"train", "evaluate", "predict", "submit", "info"}


def test_options_named_by_themselves_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those in the text and in comments: --device cpu, --resume."""
    pytest.importorskip("typer")
    from asc.cli.app import main

    monkeypatch.setenv("COLUMNS", "200")
    for command in {words[1] for words in ASC}:
        main([command, "--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    named = set(re.findall(r"[`;] ?(--[\w-]+)", DOCUMENTS))
    assert {"--device", "--precision", "--eps", "--resume"} <= named <= known


@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.gpu_suite"])
def test_benchmarks_take_the_options_shown(module: str) -> None:
    pytest.importorskip("rich")
    (line,) = (line for line in SHELL if re.search(rf"python -m {module}( |$)", line))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    said = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True,
                          env=environment, cwd=ROOT, check=True).stdout  # fmt: skip
    assert options_of(line.partition(module)[2].split()) <= set(re.findall(r"--[\w-]+", said))


def test_the_readme_and_ci_run_the_same_tests() -> None:
    (command,) = (line for line in SHELL if line.endswith("/pytest"))
    install, _, tests = command.rpartition(" && ")
    lines = re.sub(" (-q|--no-build-isolation)", "", (ROOT / ".ci/run").read_text()).splitlines()
    assert lines.index(tests) > max(lines.index(step) for step in install.split(" && "))


def test_variables_are_read() -> None:
    sources = [path.read_text() for folder in ("fastsep", "csrc") for path in
               (ROOT / folder).rglob("*") if path.suffix in {".py", ".cpp", ".h"}]  # fmt: skip
    sources.append((ROOT / "setup.py").read_text())
    names = set(re.findall(r"FASTSEP_[A-Z_]+", README))
    assert len(names) > 4
    assert [name for name in names if not any(name in source for source in sources)] == []
