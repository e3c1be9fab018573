"""Scores as tables for people and as JSON for programs."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asc.files import atomic
from asc.metrics import Scores
from asc.model import LayerRow


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, all or nothing. Raises OSError; ValueError for NaN or infinity."""
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic(path) as file:
        file.write(f"{text}\n".encode())


def score_tables(systems: Mapping[str, Scores]) -> Iterator[Table]:
    """Overall, class-wise and device-wise tables, one group of columns per named system."""
    names = list(systems)
    scores = list(systems.values())

    overall = _table("Overall", ["", *names])
    for label, values in (
        ("log loss, mean over classes", [s.log_loss_macro for s in scores]),
        ("log loss, mean over clips", [s.log_loss_samples for s in scores]),
    ):
        overall.add_row(label, *map(_nats, values))
    for label, values in (
        ("accuracy, mean over classes", [s.accuracy_macro for s in scores]),
        ("accuracy, mean over clips", [s.accuracy_samples for s in scores]),
        ("expected calibration error", [s.ece for s in scores]),
    ):
        overall.add_row(label, *map(_percent, values))
    overall.add_row("clips", *(str(s.count) for s in scores))
    yield overall

    columns = [f"{what}\n{name}" for what in ("log loss", "accuracy") for name in names]
    by_class = _table("By class", ["class", "clips", *columns])
    for name, first in scores[0].per_class.items():
        rows = [s.per_class[name] for s in scores]
        by_class.add_row(
            name,
            str(first.count),
            *(_nats(row.log_loss) for row in rows),
            *(_percent(row.accuracy) for row in rows),
        )
    yield by_class

    if not scores[0].per_device:  # file names told no devices
        return
    by_device = _table("By device (means over classes)", ["device", "clips", *columns])
    for name, device in scores[0].per_device.items():
        devices = [s.per_device[name] for s in scores]
        by_device.add_row(
            name,
            str(device.count),
            *(_nats(row.log_loss_macro) for row in devices),
            *(_percent(row.accuracy) for row in devices),
        )
    yield by_device


def parameter_report(rows: Sequence[LayerRow]) -> Table:
    """The network's layers with output shapes and parameter counts, and their sums."""
    table = _table("", ["layer", "output C x T x F", "at test time", "at training time"])
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.layer, shape, _count(row.test_time), _count(row.training_time))
    table.add_section()
    totals = (sum(row.test_time for row in rows), sum(row.training_time for row in rows))
    table.add_row("total", "", *map(_count, totals))
    return table


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    for table in tables:
        console.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title or None, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _nats(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _count(value: int) -> str:
    return f"{value:,}".replace(",", " ")
