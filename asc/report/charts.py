"""Pictures for pages: SVG whose text is text and whose colours are the page's, light or dark."""

import io
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from asc.metrics import ECE_BINS, IntArray

# Drawn in colours that stand for those of the page's style sheet.
INK, SOFT, LINE = "#000001", "#000002", "#000003"
SERIES = ("#000004", "#000005", "#000006", "#000007", "#000008")
_OF_PAGE = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold any character
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_WIDEST = 50  # letters of names beside each other
_MOST_COUNTED = 25  # classes whose confusions are written into their cells


def confusion(counts: IntArray, classes: Sequence[str]) -> Markup:
    """Which class (rows) was taken for which (columns), tinted by its share of the row."""
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    size = min(11.0, 1.0 + 0.42 * len(classes))
    names = _letters(classes)
    with _drawing("confusion", size + names, size + 0.75 * names) as (figure, svg):
        axes = figure.subplots()
        _room(figure, left=names + 0.35, bottom=0.75 * names + 0.5, top=0.05)
        tints = np.zeros((*share.shape, 4))
        tints[..., :3], tints[..., 3] = to_rgb(SERIES[0]), 0.7 * share
        edges = np.arange(len(classes) + 1) - 0.5
        axes.pcolormesh(edges, edges, tints, linewidth=0)
        if len(classes) <= _MOST_COUNTED:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(classes)), classes)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set(xlabel="predicted", ylabel="true", aspect="equal")
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
    return svg()


def reliability(ways: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """Accuracy against confidence, and below it how many clips had which confidence.

    Args:
        ways: bins of `asc.report.evaluation.describe`, by what to call them.
    """
    edges = np.arange(ECE_BINS) / ECE_BINS
    with _drawing("reliability", 5.6, 5.0) as (figure, svg):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _room(figure, left=0.6, bottom=0.5, top=_legend_height(ways) + 0.05)
        upper.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        width = 1 / ECE_BINS / len(ways)
        for i, ((name, bins), color) in enumerate(zip(ways.items(), cycle(SERIES), strict=False)):
            full = [bin for bin in bins if bin["count"]]
            upper.plot(
                [bin["confidence"] for bin in full], [bin["accuracy"] for bin in full],
                color=color, marker="o", markersize=3.5, linewidth=1.4, label=name,
            )  # fmt: skip
            counts = [bin["count"] for bin in bins]
            lower.bar(edges + i * width, counts, width, align="edge", color=color, linewidth=0)
        upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
        _legend(figure, upper, ways)
        lower.set(xlabel="largest probability", ylabel="clips")
        for axes in (upper, lower):
            axes.grid(axis="y")
            axes.tick_params(length=0, pad=5)
    return svg()


def class_scores(
    names: Sequence[str], ways: Mapping[str, Sequence[tuple[float, Sequence[float] | None]]]
) -> Markup:
    """Log losses of the classes, with their intervals.

    Args:
        names: of the classes.
        ways: by what to call them, (value, interval) of every class.
    """
    with _drawing("classes", 5.8, 0.8 + 0.1 * len(ways) + 0.36 * len(names)) as (figure, svg):
        axes = figure.subplots()
        top = _legend_height(ways) + 0.05
        _room(figure, left=_letters(names) + 0.1, bottom=0.5, top=top)
        apart = 0.78 / (len(ways) + 1)
        for i, ((way, values), color) in enumerate(zip(ways.items(), cycle(SERIES), strict=False)):
            y = np.arange(len(names)) + apart * (i - (len(ways) - 1) / 2)
            _points(axes, y, values, color, way)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set(xlabel="log loss (nats)", xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
        axes.grid(axis="x")
        _legend(figure, axes, ways)
    return svg()


def _points(
    axes: Axes,
    y: Any,
    values: Sequence[tuple[float, Sequence[float] | None]],
    color: str,
    label: str,
) -> None:
    for at, (_, ends) in zip(y, values, strict=True):
        if ends is not None:
            axes.plot(ends, [at, at], color=color, linewidth=1.2, alpha=0.55)
    axes.plot([value for value, _ in values], y, "o", color=color, markersize=4.5, label=label)


def _legend(figure: Figure, axes: Axes, ways: Collection[str]) -> None:
    """Above the picture, where there is something to tell apart."""
    if len(ways) > 1:
        handles, labels = axes.get_legend_handles_labels()
        columns = 1 if _is_wide(ways) else len(ways)
        figure.legend(handles, labels, loc="upper left", ncols=columns, fontsize=9,
                      borderaxespad=0)  # fmt: skip


def _legend_height(ways: Collection[str]) -> float:
    """In inches."""
    if len(ways) < 2:
        return 0
    return 0.2 + 0.19 * (len(ways) if _is_wide(ways) else 1)


def _is_wide(ways: Iterable[str]) -> bool:
    return sum(map(len, ways)) > _WIDEST


def _letters(names: Iterable[str]) -> float:
    """The width of the longest name in inches, or a little more."""
    return 6.3 / 72 * max(map(len, names), default=0)


def _room(figure: Figure, *, left: float, bottom: float, top: float, right: float = 0.15) -> None:
    """Margins in inches: known here, which is faster than matplotlib's layouts find them."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)


@contextmanager
def _drawing(
    name: str, width: float, height: float
) -> Iterator[tuple[Figure, Callable[[], Markup]]]:
    """A figure of so many inches, and what gives its markup once it is drawn, after the block."""
    kept: list[Markup] = []
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        figure.patch.set_visible(False)
        yield figure, lambda: kept[0]
        for axes in figure.axes:
            axes.patch.set_visible(False)
        text = io.StringIO()
        with warnings.catch_warnings(action="ignore"):  # characters that its own font has not
            none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(text, format="svg", metadata=none)
    kept.append(_for_page(text.getvalue(), name))


def _for_page(svg: str, name: str) -> Markup:
    """The picture as it stands in a page: in its font and colours, without ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    referred = set(re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', svg))
    kept = {name for pair in referred for name in pair}
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in kept else "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 data-width="\2"', svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"font: (?:normal )*([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for color, of_page in _OF_PAGE.items():
        svg = svg.replace(color, of_page)
    found = re.search(r'data-width="([\d.]+)"', svg)
    assert found is not None
    style = f'class="chart" style="max-width: {float(found[1]) * 1.6:.0f}px" role="img"'
    svg = svg.replace(found[0], f'{style} aria-label="{name}"', 1)
    return Markup(svg.strip())
