"""What the documents say about speed is what the results say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quote

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("benchmarks/results/*/benchmarks.json"))
DOCUMENTS = [(ROOT / name).read_text() for name in ("README.md", "benchmarks/README.md")]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_documents_quote_the_results(folder: Path) -> None:
    passage = quote.passage(folder)
    assert sum(passage in text for text in DOCUMENTS) == 1, (
        f"run `python -m benchmarks.quote {folder.relative_to(ROOT)}` and paste:\n{passage}"
    )


def test_the_readme_quotes_a_machine() -> None:
    assert any(quote.passage(folder) in DOCUMENTS[0] for folder in FOLDERS)


def row(system: str, allocator: str, ms: float, ratio: float, **more: Any) -> Any:
    return {"case": "network", "system": system, "allocator": allocator, "share_of_peak": 0.876,
            "median_ms_per_clip": ms, "over_fastsep": ratio,
            "over_fastsep_same_allocator": 2 * ratio, "relative_error": 2.34e-7} | more  # fmt: skip


def test_the_table(tmp_path: Path) -> None:
    rows = []
    for batch, threads in quote.SIZES:
        size = {"batch": batch, "threads": threads}
        rows += [row("fastsep, float32", "tuned", 2, 1, share_of_peak=0.5, **size),
                 row("fastsep, float32", "as installed", 1, 1, **size),
                 row("fastsep, float32, AVX2", "tuned", 2, 2, **size),
                 row("eager, NCHW", "tuned", 10, 9.97, **size),
                 row("eager, NCHW", "as installed", 30, 9.97, **size),
                 row("ONNX Runtime", "as installed", 4.1, 4.06, **size),
                 row("fastsep, bf16", "tuned", 0.6, 0.631, **size)]  # fmt: skip
    versions = {"onnxruntime": "1.32.0", "openvino": "2026.4.1", "torch": "2.11.0"}
    content = {"machine": {"versions": versions}, "results": rows}
    lines = quote.network_table(content)
    assert [line[:2] for line in lines] == [
        ["time / fastsep's float32", "batch 8, 2 threads"],
        ["fastsep, float32, time a clip", "1.0 ms"],
        ["fastsep, float32, share of the FMA peak", "88 %"],
        ["fastsep, AVX2 forced, share of AVX2's FMA peak", "88 %"],
        ["fastsep, bf16", "0.63x"],
        ["ONNX Runtime 1.32", "4.1x"],
        ["eager, NCHW", "10x"],
        ["eager, NCHW, allocator as installed", "20x"],
    ]
    assert {len(line) for line in lines} == {5}
    assert [line[-1] for line in lines] == ["largest error", *["2e-07"] * 7]

    parts = [{"case": f"block {i}", "system": "fastsep", "share_of_peak": 0.4 + i / 10}
             for i in range(1, 5)]  # fmt: skip
    parts += [{"case": case, "system": "fastsep", "median_ms_per_clip": ms, "share_of_peak": 0}
              for case, ms in (("head", 0.0234), ("log-mel", 3.39))]  # fmt: skip
    for part in parts:
        part |= {"batch": 1, "threads": 2}
    content["results"] += parts
    content["machine"] |= {"processor": "Some", "date": "2026-01-01", "fma_gflops_1_thread": 99.7,
                           "commit": "0123456789abcdef + changes"}  # fmt: skip
    (tmp_path / "benchmarks.json").write_text(json.dumps(content))
    caption, table, sentence = quote.passage(tmp_path).split("\n\n")
    caption = caption.replace("\n", " ")
    assert caption.startswith("Some, 100 GFLOP/s") and "torch 2.11.0, 2026-01-01, commit" in caption
    assert caption.endswith("commit 0123456789 + changes, medians of 20 rounds or more:")
    assert table.splitlines()[1] == "|---|---|---|---|---|"
    assert "60 to 80 % of the peak (block 1, all memory: 50 %)" in sentence.replace("\n", " ")
    assert "0.02 ms" in sentence and "3.4 ms" in sentence
