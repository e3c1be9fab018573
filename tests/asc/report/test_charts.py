import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np
import pytest

from asc.report import charts

NAMES = ("tram <b>", "a & $x$ \\frac", "地下鉄")
BINS = [{"count": 0, "accuracy": None, "confidence": None}] * 7 + [
    {"count": n, "accuracy": n / 9, "confidence": 0.5 + n / 20} for n in range(1, 9)
]


def texts(svg: str) -> list[str]:
    """Also checks that it is well-formed, and brings neither colours, fonts nor ids of its own."""
    assert not re.search(r"#[0-9a-f]{6}\b|font-family|rgb\(|<style|<metadata|url\(http", svg)
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(set(ids)) == len(ids) and all(f"#{name}" in svg for name in ids)
    root = ElementTree.fromstring(svg)
    assert "width" not in root.attrib and "viewBox" in root.attrib
    return ["".join(element.itertext()).strip() for element in root.findall(".//{*}text")]


def test_confusions() -> None:
    svg = charts.confusion(np.array([[3, 1, 0], [0, 40, 0], [0, 0, 0]]), NAMES)
    assert sorted(texts(svg)) == sorted(["3", "1", "40", *NAMES, *NAMES, "predicted", "true"])
    assert svg.count("var(--series-1)") == 3 and "fill-opacity: 0.525" in svg  # 0.7 * 3 / 4


def test_many_classes_are_not_counted_in_words() -> None:
    names = [f"class {i}" for i in range(30)]
    assert sorted(texts(charts.confusion(np.eye(30, dtype=int), names))) == sorted(
        [*names, *names, "predicted", "true"]
    )


def test_reliability() -> None:
    found = texts(charts.reliability({"no TTA": BINS, "5 TTA": BINS[::-1]}))
    assert {"no TTA", "5 TTA", "accuracy", "largest probability", "clips"} <= set(found)


@pytest.mark.parametrize("ends", [(0.5, 1.5), None])
def test_classes(ends: Sequence[float] | None) -> None:
    svg = charts.class_scores(NAMES, {"no TTA": [(1.0, ends)] * 3, "5 TTA": [(0.9, ends)] * 3})
    assert {*NAMES, "no TTA", "5 TTA"} <= set(texts(svg))


def test_one_way_has_no_legend() -> None:
    for svg in (
        charts.reliability({"no TTA": BINS}),
        charts.class_scores(NAMES, {"no TTA": [(1.0, None)] * 3}),
    ):
        assert "no TTA" not in texts(svg)


def test_pictures_of_one_page_share_no_ids() -> None:
    pictures = (
        charts.confusion(np.eye(3, dtype=int), NAMES),
        charts.reliability({"no TTA": BINS}),
        charts.class_scores(NAMES, {"no TTA": [(1.0, None)] * 3}),
    )
    ids = [name for svg in pictures for name in re.findall(r'\bid="([^"]*)"', svg)]
    assert ids and len(set(ids)) == len(ids)
