"""Fixtures of the tests of the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asc.checkpoint import save_folded
from asc.cli.app import main
from asc.model import Cnn6Sep

Asc = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def children_import_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the clone that they are started in, which may lack kernels."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")


@pytest.fixture
def asc_(capsys: pytest.CaptureFixture[str]) -> Asc:
    """asc_(arguments...): runs the command -> exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def one_line() -> Callable[..., None]:
    """one_line(error, parts...): stderr is one line of ours in which the parts occur."""

    def check(error: str, *parts: object) -> None:
        assert error.startswith("asc: ") and error.count("\n") == 1, error
        for part in parts:
            assert str(part) in error, error

    return check


@pytest.fixture
def rejects(
    asc_: Asc,
    one_line: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """rejects(part, arguments...): the command names the part in one line and makes no file."""

    def check(part: str, *arguments: object) -> None:
        monkeypatch.chdir(tmp_path)
        code, output, error = asc_(*arguments)
        assert (code, output) == (2, "")
        one_line(error, part)
        assert not any(tmp_path.iterdir())

    return check


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folded weights of an untrained network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "folded.pt"
    save_folded(Cnn6Sep(), path)
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, wav: Callable[..., Path]) -> Path:
    """Two classes of two training clips and one evaluation clip each."""
    root = tmp_path_factory.mktemp("folders")
    for i, name in enumerate(("hum", "whistle")):
        for split, clips in (("train", 2), ("evaluate", 1)):
            for clip in range(clips):
                wav(root / split / name / f"{clip}.wav", hertz=100 * 20**i + 10 * clip)
    return root
