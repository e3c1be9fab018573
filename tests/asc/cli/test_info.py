import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asc.checkpoint import load_model
from asc.complexity import summary

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


def test_info_counts(weights: Path, asc_: Asc) -> None:
    code, output, _ = asc_("info", weights)
    assert code == 0
    for part in ("62 474", "64 330", "124948 B", "124.95 KB of 1000 B", "122.02 KB of 1024 B"):
        assert part in output
    nonzero = sum(int(p.count_nonzero()) for p in load_model(weights).parameters())
    assert f"as float16: {nonzero}" in output


def test_info_says_what_it_takes(weights: Path, asc_: Asc) -> None:
    code, output, _ = asc_("info", weights)
    assert code == 0
    for part in ("442 574 080", "44.3 million a second", "10.55 MB a clip in float32"):
        assert part in output
    verdicts = [line.split("\t")[-1] for line in output.splitlines() if line.startswith("202")]
    assert verdicts == ["pass", "pass", "fail"]


def test_numbers_to_a_file_and_to_standard_output(weights: Path, tmp_path: Path, asc_: Asc) -> None:
    code, tables, error = asc_("info", weights, "--json", tmp_path / "x.json")
    assert (code, error) == (0, "") and "block 1" in tables
    content = json.loads((tmp_path / "x.json").read_text())
    model = load_model(weights)
    expected = {"weights": str(weights), "classes": list(model.classes)} | summary(model)
    assert content == json.loads(json.dumps(expected))
    code, output, error = asc_("info", weights, "--json", "-")
    assert code == 0 and json.loads(output) == content and error == tables


@pytest.mark.parametrize("file", ["/no/such/folder/x.json", "."])
def test_where_nothing_can_be_written(file: str, rejects: Rejects) -> None:
    rejects(file, "info", "w", "--json", file)
