from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("train", "d", "--out", "new", "--precision", "fp16"), "--precision"),
        (("train", "d", "--out", "new", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("train", "d"), "--out"),
        (("train", "d", "--out", "new", "--preset", "x"), "'x'"),
        (("train", "d", "--out", "new", "--epochs", "0"), "--epochs"),
        (("train", "d", "--out", "new", "--workers", "100000"), "--workers"),
        (("train", "d", "--out", "new", "--keep", "first"), "--keep"),
        (("train", "no-such-data", "--out", "new"), "no-such-data"),
        (("train", "d", "--out", "new", "--resume"), "new"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)


@pytest.mark.parametrize("started", [False, True])
def test_interrupted(
    started: bool, tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc
) -> None:
    """Only a run that has begun can be resumed, and the message says so then alone."""
    out = tmp_path / "run"

    def fit_data(*_: Any, **__: Any) -> None:
        if started:
            out.mkdir()
            (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("asc.training.run.fit_data", fit_data)
    code, output, error = asc_("train", folders, "--out", out)
    assert (code, output) == (130, "")
    assert ("--resume" in error) == started
