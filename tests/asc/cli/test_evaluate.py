from collections.abc import Callable
from pathlib import Path

import pytest

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("evaluate", "w", "d", "--split", "test"), "--split"),
        (("evaluate", "w", "d", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("evaluate", "w", "d", "--json", "/no/such/folder/x.json"), "/no/such/folder/x.json"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)


@pytest.mark.parametrize("eps", ["-1", "nan"])
def test_bad_eps(eps: str, weights: Path, folders: Path, asc_: Asc, one_line: OneLine) -> None:
    code, _, error = asc_("evaluate", weights, folders, "--eps", eps)
    assert code == 2
    one_line(error, "eps")
