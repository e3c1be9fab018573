from collections.abc import Callable
from pathlib import Path

import pytest

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


def test_synth(tmp_path: Path, asc_: Asc, one_line: OneLine) -> None:
    arguments = ("synth", tmp_path / "data", "--clips-per-scene", 2, "--seconds", 0.1, "--seed", 1)
    assert asc_(*arguments)[0] == 0
    assert len(list((tmp_path / "data" / "audio").glob("*.wav"))) == 20
    code, _, error = asc_(*arguments)
    assert code == 2
    one_line(error, tmp_path / "data", "not empty")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("synth", "new", "--clips-per-scene", "1"), "clips"),
        (("synth", "new", "--seconds", "nan"), "seconds"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)
