from collections.abc import Callable
from pathlib import Path

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
        (("train", "no-such-data", "--out", "new"), "no-such-data"),
        (("train", "d", "--out", "new", "--resume"), "new"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)
