"""From timings to rows: ratios under the setting that suits each best, digits, files."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, report


def entry(system: str, seconds: float, batch: int = 2, rounds: int = 20) -> Any:
    info = {"system": system, "batch": batch, "threads": 1, "isa": "avx2", "flop": 10**9,
            "peak_gflops": 123.456, "relative_error": 1.23456e-7}  # fmt: skip
    return {"extra_info": info,
            "stats": {"median": seconds, "min": seconds / 2, "rounds": rounds}}  # fmt: skip


TUNED = [entry("fastsep, float32", 0.010), entry("fastsep, float32, AVX2", 0.020),
         entry("peer", 0.060), entry("fastsep, float32", 0.001, batch=1)]  # fmt: skip
INSTALLED = [entry("fastsep, float32", 0.0125, rounds=7), entry("peer", 0.050)]


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    paths = {"tuned": tmp_path / "tuned.json", "as installed": tmp_path / "installed.json"}
    for path, entries in zip(paths.values(), (TUNED, INSTALLED), strict=True):
        path.write_text(json.dumps({"benchmarks": entries}))
    return paths


def test_every_system_is_compared_at_its_best(runs: dict[str, Path]) -> None:
    rows = [row for setting, path in runs.items() for row in report.read(setting, path)]
    report.compare(rows)
    by_setting = {row["allocator"]: row for row in rows if row["system"] == "peer"}
    for row in by_setting.values():
        assert row["over_fastsep"] == pytest.approx(5)  # 50 ms as installed, 10 ms tuned
    assert by_setting["tuned"]["over_fastsep_same_allocator"] == pytest.approx(6)
    assert by_setting["as installed"]["over_fastsep_same_allocator"] == pytest.approx(4)
    assert [row["over_fastsep"] for row in rows if row["system"] == "fastsep, float32"] == [1] * 3
    (avx2,) = (row for row in rows if row["system"].endswith("AVX2"))
    assert avx2["over_fastsep"] == pytest.approx(2)
    where = {"batch": 2, "case": "network"}
    chosen = {row["system"]: row["allocator"] for row in report.fastest(rows, where)}
    assert chosen["peer"] == "as installed" and chosen["fastsep, float32"] == "tuned"


def test_a_case_without_ours_has_no_ratio(runs: dict[str, Path]) -> None:
    rows = report.read("tuned", runs["tuned"])
    rows = [row for row in rows if not row["system"].startswith("fastsep")]
    report.compare(rows)
    assert "over_fastsep" not in rows[0] and "over_fastsep_same_allocator" not in rows[0]


def test_the_files_hold_what_a_figure_needs(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    about = {"commit": "abc + changes", "compiler": "GCC", "fma_gflops_2_threads": 234.5678,
             "copy_gbps_2_threads": 40.0}  # fmt: skip
    monkeypatch.setattr(machine, "describe", lambda: about)
    report.write_report(runs, tmp_path)
    content = json.loads((tmp_path / "benchmarks.json").read_text())
    assert content["machine"]["commit"] == "abc + changes"
    assert content["machine"]["fma_gflops_2_threads"] == 234.6
    row = content["results"][0]
    assert (row["rounds"], row["relative_error"], row["peak_gflops"]) == (20, 1.235e-7, 123.5)
    assert row["flop"] == 10**9 and row["median_ms_per_clip"] == 5 and row["gflops"] == 100
    with (tmp_path / "benchmarks.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(content["results"]) == 6
    assert set(table[0]) == set(report.COLUMNS) and all(table[2].values())
    assert table[2]["relative_error"] == "1.235e-07" and table[4]["rounds"] == "7"
    assert (tmp_path / "roofline.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "abc + changes" in printed and "1e-07" in printed and "as installed" in printed


def test_digits() -> None:
    value = {"a": [1.23456, 12345.6, 7, "1.23456", True], "b": 0.000123456}
    assert report.four_digits(value) == {"a": [1.235, 12350.0, 7, "1.23456", True], "b": 0.0001235}


def test_hours_of_training_follow_from_the_step() -> None:
    rows = [{"system": system, "case": "training step", "batch": 32, "threads": 2,
             "median_ms_per_clip": ms, "allocator": setting}
            for system, ms, setting in (("eager, NCHW", 360.0, "tuned"), ("fastsep", 36.0, "tuned"),
                                        ("fastsep", 18.0, "as installed"))]  # fmt: skip
    first, second = report.hours(rows)
    assert "fastsep 14.0 hours" in first  # 200 * 13962 * 18 ms, its better setting
    assert "eager, NCHW 279.2 hours" in second
    assert report.hours([]) == []
