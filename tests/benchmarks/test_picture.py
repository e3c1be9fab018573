"""The README's picture and headline are what the results say."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import picture, quote

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
(SHOWN,) = re.findall(r"\]\((benchmarks/results/[\w/.-]+\.svg)\)", README)
CONTENT = json.loads((ROOT / SHOWN).with_name("benchmarks.json").read_text())


def texts(svg: Path) -> set[str]:
    found = re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text())
    return {html.unescape(text) for text in found}


def test_the_picture_shows_the_results() -> None:
    bars = picture.bars(CONTENT)
    assert bars[0][0] == "fastsep, float32" and len(bars) > 5
    assert {text for name, ms in bars for text in (name, f"{ms:.1f} ms")} <= texts(ROOT / SHOWN)
    assert (ROOT / SHOWN).stat().st_size < 60_000


def test_the_first_screen_says_what_the_results_say() -> None:
    screen = README.partition("\n## ")[0].replace("\n", " ")
    times = dict(picture.bars(CONTENT))
    ours = times["fastsep, float32"]
    assert f"**{ours:.1f} ms for 10 s of audio on two CPU cores**" in screen
    for name, said in (("ONNX Runtime 1.32", "as fast as ONNX Runtime"),
                       ("torch.compile, frozen, max-autotune", "torch.compile"),
                       ("PyTorch, eager, channels_last", "eager PyTorch")):  # fmt: skip
        assert f"{quote.times(times[name] / ours)} {said}" in screen
    assert all(f"{ms:.1f} ms" in screen for name, ms in times.items() if "1.32" in name)
    assert CONTENT["machine"]["date"] in screen


def row(system: str, ms: float, **more: Any) -> dict[str, Any]:
    size = {"case": "network", "batch": 8, "threads": 2}
    return size | {"system": system, "allocator": "tuned", "median_ms_per_clip": ms} | more


def test_bars_and_their_drawing(tmp_path: Path) -> None:
    """Each system's better setting, the fastest first; the same file for the same times."""
    rows = [
        row("OpenVINO", 9),
        row("OpenVINO", 8.04, allocator="as installed"),
        row("OpenVINO", 1, batch=1),
        row("a <b>", 2),
        row("fastsep, float32, AVX2", 3),
        row("eager, NCHW", 20),
    ]
    versions = {"openvino": "2026.4.1", "onnxruntime": "1.32.0"}
    bars = picture.bars({"machine": {"versions": versions}, "results": rows})
    assert bars == [("a <b>", 2), ("OpenVINO 2026.4", 8.04), ("PyTorch, eager, NCHW", 20)]
    pytest.importorskip("matplotlib")
    for name in ("x.svg", "y.svg"):
        picture.draw(bars, tmp_path / name)
    assert (tmp_path / "x.svg").read_bytes() == (tmp_path / "y.svg").read_bytes()
    assert {"a <b>", "OpenVINO 2026.4", "2.0 ms", "8.0 ms"} <= texts(tmp_path / "x.svg")
