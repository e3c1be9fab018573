from collections.abc import Callable
from pathlib import Path

import pytest

Asc = Callable[..., tuple[int, str, str]]
Rejects = Callable[..., None]

HEAD = "filename,scene_label,device,city,predicted,bus,tram"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two evaluations, the second surer and right."""
    for name, p in (("a", 0.5), ("b", 0.75)):
        (tmp_path / name).mkdir()
        rows = [f"{i}.wav,bus,,,bus,{p},{1 - p}" for i in range(3)]
        (tmp_path / name / "predictions.csv").write_text("\n".join([HEAD, *rows]))
    return [tmp_path / "a", tmp_path / "b"]


def test_tables_and_a_page(folders: list[Path], tmp_path: Path, asc_: Asc) -> None:
    code, output, error = asc_("compare", *folders, "--out", tmp_path / "x.html")
    assert (code, error) == (0, "")
    # log 0.5 - log 0.75 on every clip, hence on every resample
    assert "-0.405\t-0.405 ... -0.405\tyes\t+0.0 %\t+0.0 % ... +0.0 %\tno" in output
    page = (tmp_path / "x.html").read_text()
    assert "\u22120.405" in page and str(folders[0]) in page


def test_the_page_is_there_whoever_reads_the_tables(
    folders: list[Path], tmp_path: Path, asc_: Asc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("asc.report.tables.print_tables", gone)
    with pytest.raises(SystemExit):
        asc_("compare", *folders, "--out", tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size > 1000
    code, _, error = asc_("compare", *folders, "--out", folders[1] / "predictions.csv")
    assert code == 2 and "is what is read" in error


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("compare",), "DIR"),
        (("compare", "x"), "nothing to compare"),
        (("compare", "x", "y"), "x: no such folder"),
        (("compare", "x", "y", "--out", "/no/such/folder/x.html"), "/no/such/folder/x.html"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)
