import io

import numpy as np
import pytest
from rich.console import Console

from asc.bootstrap import Units
from asc.report.comparison import Comparison, Difference, Evaluated, System
from asc.report.comparison_views import comparison_page, comparison_tables
from asc.report.predictions import Predictions
from asc.report.tables import print_tables

NAME = "[b]<script>alert(1)</script>"
CLASSES = ("<i>bus</i>", "park")


def member(folder: str, seed: int) -> Evaluated:
    about = Predictions(CLASSES, ("x.wav",), (0,), ("a",), (None,), np.array([[0.5, 0.5]]))
    run = {"preset": {"name": "ce_tta"}, "seed": seed}
    return Evaluated(folder, about, {"weights": "<b>w</b>.pt", "data": "d", "run": run})


@pytest.fixture
def comparison() -> Comparison:
    def system(name: str, members: tuple[Evaluated, ...]) -> System:
        values = [0.5 + 0.25 * i for i in range(len(members))]
        keys = ("log_loss_macro", "log_loss_samples", "accuracy_macro", "accuracy_samples", "ece",
                "brier")  # fmt: skip
        losses = {CLASSES[0]: 0.625, CLASSES[1]: None}
        return System(name, members, dict.fromkeys(keys, values), losses, {"s5": 0.875})

    return Comparison(
        24,
        Units(np.arange(24), 24, "recording locations"),
        [system(NAME, (member("a", 3),)), system("ce_tta", (member("b", 4), member("c", 5)))],
        [Difference(NAME, "ce_tta", -0.25, 0.125, (-0.5, -0.125), (-0.5, 0.75))],
    )


def test_tables(comparison: Comparison) -> None:
    console = Console(file=io.StringIO())
    print_tables(console, comparison_tables(comparison))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    one = f"{NAME}\t1\t0.500\t0.500\t50.0 %\t50.0 %\t50.0 %\t0.500"
    mean = "0.625 ± 0.177"  # of 0.5 and 0.75: 0.25 / sqrt(2)
    two = f"ce_tta\t2\t{mean}\t{mean}\t62.5 % ± 17.7 %\t62.5 % ± 17.7 %\t62.5 % ± 17.7 %\t{mean}"
    assert one in lines and two in lines
    difference = "-0.250\t-0.500 ... -0.125\tyes\t+12.5 %\t-50.0 % ... +75.0 %\tno"
    assert f"ce_tta - {NAME}\t{difference}" in lines


def test_page(comparison: Comparison) -> None:
    page = comparison_page(comparison)
    for name in ("<script>", "<i>", "<b>w"):
        assert name not in page and name.replace("<", "&lt;").replace(">", "&gt;") in page
    for part in (
        "\u22120.250", "+12.5\u202f%", "\u22120.500 to \u22120.125", ">clear<", ">not clear<",
        "± 0.177", "seeds 4, 5", "24 recording locations", "0.625", "0.875",
    ):  # fmt: skip
        assert part in page, part
    assert page.count("<svg") == 1 and "http-equiv" in page


def test_more_systems_than_colours_have_no_picture(comparison: Comparison) -> None:
    many = Comparison(24, comparison.drawn, comparison.systems * 3, [])
    assert "<svg" not in comparison_page(many)
