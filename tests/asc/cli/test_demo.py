import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import asc.demo
from asc.checkpoint import load_model
from asc.demo import Size
from asc.speed import Speed
from asc.task import SCENES

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc, one_line: OneLine
) -> None:
    monkeypatch.setattr(asc.demo, "COMPILED", Size(clips_per_scene=2, epochs=1))
    monkeypatch.setattr(asc.demo, "UNCOMPILED", Size(clips_per_scene=2, epochs=1))
    monkeypatch.setattr(asc.demo, "TTA", 2)
    speed = Speed(1.0, 3.0, "NCHW", "not measured")
    monkeypatch.setattr(asc.demo, "compare", lambda weights, device: speed)
    out = tmp_path / "demo"
    code, output, error = asc_("demo", "--out", out)
    assert code == 0, error
    for part in ("ynthetic", "2 TTA", "shopping_mall", "s6", "3.0 times as long (not measured)"):
        assert part in output
    assert (out / "report.txt").read_text() == output
    results = json.loads((out / "results.json").read_text())
    assert results["scores"].keys() == {"no TTA", "2 TTA"}
    assert load_model(out / "run" / "folded.pt").classes == SCENES
    assert (out / "picture.png").is_file()

    # The commands printed last find the same numbers.
    lines = [shlex.split(line) for line in output.splitlines() if line.startswith("  asc ")]
    (_, *evaluate), (_, *predict) = lines
    assert asc_(*evaluate, "--json", tmp_path / "again.json")[0] == 0
    again = json.loads((tmp_path / "again.json").read_text())["results"]
    assert [scores["tta"] for scores in again] == [0, 2]
    for scores, found in zip(results["scores"].values(), again, strict=True):
        assert {name: found[name] for name in scores} == scores
    assert asc_(*predict)[0] == 0

    code, _, error = asc_("demo", "--out", out)
    assert code == 2
    one_line(error, out, "not empty")
