"""A comparison as tables and as a page."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from asc.report import charts
from asc.report.comparison import Comparison, Interval, by_system, clear, spread
from asc.report.html import render
from asc.report.page import SCORES
from asc.report.tables import printable


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """Systems with their scores, then the differences of every two."""
    table = Table("system", "runs", *_titles(), title="Systems", title_justify="left")
    for system in comparison.systems:
        cells = [
            _plus_minus(*spread(system.scores[key]), kind) for key, (_, kind) in SCORES.items()
        ]
        table.add_row(Text(printable(system.name)), str(len(system.members)), *cells)
    yield table
    about = f"{100 * comparison.coverage:.0f} % of resampled {comparison.drawn.name}"
    table = Table("second - first", "log loss", "from ... to", "clear",
                  "accuracy", "from ... to", "clear",
                  title=f"Differences, means over classes ({about})",
                  title_justify="left")  # fmt: skip
    for pair in comparison.differences:
        table.add_row(
            Text(printable(f"{pair.second} - {pair.first}")),
            _number(pair.log_loss, "nats", "+"),
            *_range(pair.log_loss_interval, "nats"),
            _number(pair.accuracy, "percent", "+"),
            *_range(pair.accuracy_interval, "percent"),
        )
    yield table


def comparison_page(comparison: Comparison) -> str:
    """The page, one file without references to others."""
    names = [printable(system.name) for system in comparison.systems]
    classes = [(name, row) for name, row in by_system(comparison, "per_class") if None not in row]
    chart = None
    if len(names) <= len(charts.SERIES):  # so many colours are told apart
        columns = zip(*(row for _, row in classes), strict=True)
        ways = {
            name: [(value, None) for value in column if value is not None]
            for name, column in zip(names, columns, strict=True)
        }
        chart = charts.class_scores([printable(name) for name, _ in classes], ways)
    return render(
        "compare.html",
        comparison=comparison,
        names=names,
        scores=SCORES,
        spread=spread,
        clear=clear,
        chart=chart,
        classes=by_system(comparison, "per_class"),
        devices=by_system(comparison, "per_device"),
    )


def _titles() -> list[str]:
    return [title.replace(", ", ",\n") for title, _ in SCORES.values()]


def _number(value: float, kind: str, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %" if kind == "percent" else f"{value:{sign}.3f}"


def _plus_minus(mean: float, deviation: float | None, kind: str) -> str:
    text = _number(mean, kind)
    return text if deviation is None else f"{text} ± {_number(deviation, kind)}"


def _range(ends: Interval | None, kind: str) -> tuple[str, str]:
    if ends is None:
        return "-", "-"
    low, high = (_number(end, kind, "+") for end in ends)
    return f"{low} ... {high}", "yes" if clear(ends) else "no"
