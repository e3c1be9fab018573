"""What is said of recordings, line by line and at the end."""

import io
import json
import math
from pathlib import Path

import pytest

from asc.errors import UserError
from asc.report.found import Lines, Remarks, remark_on_levels
from asc.scoring import Prediction
from asc.timeline import STDIN, Failure, Found, Windows

P = Prediction("[b]dog", {"cat": 0.25, "[b]dog": 0.75}, [0.0, 1.0], 3)


def found(path: str, number: int = 0, level: float = -50.0, **facts: bool) -> Found:
    facts = {"repeated": False, "goes_on": False} | facts
    return Found(Path(path), number, 5.0 * number, 5.0 * number + 10, level, **facts, prediction=P)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_off_a_terminal_are_cells_between_tabs() -> None:
    """Names are no markup and hold no tabs; bytes that are no text are marked."""
    names, out = ["[bold]x.wav", "\udcffy\tz\n.wav"], io.StringIO()
    lines = Lines([Path(name) for name in names], ("cat", "[b]dog"), windowed=False, out=out)
    for name in names:
        lines.say(found(name))
    assert out.getvalue() == (
        "file\tlabel\tprobability\n[bold]x.wav\t[b]dog\t75.0 %\n\ufffdy z .wav\t[b]dog\t75.0 %\n"
    )


def test_windows_have_a_beginning_and_an_end() -> None:
    out = io.StringIO()
    Lines([], (), windowed=True, out=out).say(found("x.wav", 2))
    assert out.getvalue().splitlines() == [
        "file\tstart\tend\tlabel\tprobability",
        "x.wav\t10.00\t20.00\t[b]dog\t75.0 %",
    ]


def test_columns_of_a_terminal_are_aligned() -> None:
    out, paths = Terminal(), [Path("x.wav"), Path("longer.wav")]
    lines = Lines(paths, ("cat", "[b]dog"), windowed=True, out=out)
    for path in paths:
        lines.say(found(str(path)))
    shown = out.getvalue().splitlines()
    assert "\t" not in out.getvalue()
    assert {line.index("[b]dog") for line in shown[1:]} == {shown[0].index("label")}


def test_json() -> None:
    out = io.StringIO()
    for windowed in (False, True):
        Lines([], (), windowed=windowed, as_json=True, out=out).say(found("\udcffx.wav", 1))
    plain, window = map(json.loads, out.getvalue().splitlines())
    assert plain == {
        "file": "\ufffdx.wav",
        "label": "[b]dog",
        "probabilities": P.probabilities,
        "logits": P.logits,
        "masks": 3,
    }
    assert window == plain | {"start": 5.0, "end": 15.0}


def test_remarks_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    remarks = Remarks(None, -50.0, strict=False)
    for name in ("a", "b"):
        remarks.look_at(found(name, repeated=True))
    remarks.look_at(found("c", goes_on=True))
    remarks.look_at(found("d", level=-80.0))
    assert capsys.readouterr().err == ""
    remarks.look_at(Failure(Path("e"), "e: \udcff\nno such file"))
    assert capsys.readouterr().err == "asc: e: \ufffd no such file\n"
    remarks.finish()
    short, long, level = capsys.readouterr().err.splitlines()
    assert short == "asc: 2 recordings, a the first, are shorter than 10 s and repeated to fill it"
    assert long.startswith("asc: c is longer than 10 s, and only the first 10 s were looked at")
    assert "1 of 4 recordings" in level and "(d: -80.0 dB)" in level
    assert remarks.failed == 1


def test_nothing_to_remark(capsys: pytest.CaptureFixture[str]) -> None:
    remarks = Remarks(None, None, strict=False)
    remarks.look_at(found("a", level=-80.0))
    remarks.finish()
    assert capsys.readouterr().err == "" and remarks.failed == 0


def test_the_level_of_a_recording_is_the_mean_of_its_windows(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    remarks = Remarks(Windows(), -50.0, strict=False)
    for number, level in enumerate((-45.0, -62.0, math.nan)):
        remarks.look_at(found("a", number, level))
    for number in range(2):
        remarks.look_at(found("b", number, math.nan))
    remarks.finish()
    assert capsys.readouterr().err == ""
    assert [record.getMessage() for record in caplog.records] == ["asc: note: b: is silent"]


def test_the_level_of_a_stream_is_said_at_its_first_window(
    capsys: pytest.CaptureFixture[str],
) -> None:
    remarks = Remarks(Windows(), -50.0, strict=False)
    for number in range(2):
        remarks.look_at(found(str(STDIN), number, -80.0))
        assert ("(standard input: -80.0 dB)" in capsys.readouterr().err) == (number == 0)
    remarks.finish()
    assert capsys.readouterr().err == ""


def test_strict() -> None:
    with pytest.raises(UserError, match=r"^e: gone$"):
        Remarks(None, None, strict=True).look_at(Failure(Path("e"), "e: gone"))


def test_levels_of_a_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    remark_on_levels([Path("a"), Path("\udcff")], [-50.0, -90.0], -45.0)
    assert "1 of 2 recordings" in (said := capsys.readouterr().err) and "(\ufffd: -90.0" in said
