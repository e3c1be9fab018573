from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from asc.export import package, submission
from asc.model import Cnn6Sep

Refused = Callable[..., AbstractContextManager[None]]


def test_folder_holds_what_the_interface_wants(model: Cnn6Sep, tmp_path: Path) -> None:
    folder = tmp_path / "Someone_Lab_task1"
    difference, largest = package.write_package(model, folder)
    assert 0 <= difference < 1e-4 * largest
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "Someone_Lab_task1_1.py", "__init__.py", "weights.pt"]
    readme = (folder / "README.md").read_text()
    for part in (
        "from Someone_Lab_task1 import Someone_Lab_task1_1",
        "temperature 0.1000",
        "forest",
    ):
        assert part in readme


def test_folders_that_cannot_be_packages(model: Cnn6Sep, tmp_path: Path, refused: Refused) -> None:
    for name in ("my-package", "class", "torch", "json"):
        with refused(name, "letters, digits and _"):
            package.write_package(model, tmp_path / name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with refused("full", "not empty"):
        package.write_package(model, tmp_path / "full")
    (tmp_path / "file").touch()
    with refused("file", "is a file"):
        package.write_package(model, tmp_path / "file")


def test_package_that_computes_something_else_is_not_written(
    model: Cnn6Sep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    source = package.inspect.getsource

    def spoilt(module: Any) -> str:
        assert module is submission
        return source(module).replace("x.mean(dim=3)", "x.amax(dim=3)")

    monkeypatch.setattr(package.inspect, "getsource", spoilt)
    with refused("changed", "not written", "off by"):
        package.write_package(model, tmp_path / "changed")
    assert not (tmp_path / "changed").exists()
