"""Scores, predictions and parameter counts as tables."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from asc.complexity import LayerRow, Limit, Size, macs_per_second, peak_memory, total_macs
from asc.metrics import Scores
from asc.prediction import Until

if TYPE_CHECKING:  # which takes readers of audio to import
    from asc.calibration import Quality


def system_name(masks: int | Until | Mapping[str, Any]) -> str:
    """What a table calls a network under so many masks; a mapping: `Until` in scores.json."""
    if not isinstance(masks, int):
        return "auto TTA"
    return f"{masks} TTA" if masks else "no TTA"


def score_tables(
    scores_by_masks: Mapping[int, Scores] | Mapping[int | Until, Scores],
    of: int | None = None,
    used: Sequence[int] = (),
) -> Iterator[Table]:
    """Overall, class-wise and device-wise tables, one group of columns per number of masks.

    Args:
        of: how many clips there are, if those scored are only a part.
        used: how many masks each clip had, if that is not the same number.
    """
    names = [system_name(masks) for masks in scores_by_masks]
    scores = list(scores_by_masks.values())

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
    part = "" if of is None else f" of {of}"
    overall.add_row("clips", *(f"{s.count}{part}" for s in scores))
    if any(isinstance(masks, Until) for masks in scores_by_masks):
        mean = f"{sum(used) / max(1, len(used)):.1f}"
        overall.add_row("masks, mean over clips", *(mean if m else "0" for m in scores_by_masks))
    yield overall

    columns = [f"{what}\n{name}" for what in ("log loss", "accuracy") for name in names]
    by_class = _table("By class", ["class", "clips", *columns])
    for name, first in scores[0].per_class.items():
        rows = [s.per_class[name] for s in scores]
        by_class.add_row(
            Text(printable(name)),
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
            Text(printable(name)),
            str(device.count),
            *(_nats(row.log_loss_macro) for row in devices),
            *(_percent(row.accuracy) for row in devices),
        )
    yield by_device


def calibration_table(before: "Quality", after: "Quality") -> Table:
    """What calibration did to the probabilities of the clips that it was fitted on."""
    table = _table("On the clips fitted on", ["", "before", "after"])
    table.add_row("negative log-likelihood (log loss)", _nats(before.nll), _nats(after.nll))
    table.add_row("Brier score", _nats(before.brier), _nats(after.brier))
    table.add_row("expected calibration error", _percent(before.ece), _percent(after.ece))
    return table


def printable(path: Path | str) -> str:
    """The name of a file, class or device, with marks in place of bytes that are no text."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


def complexity_table(rows: Sequence[LayerRow]) -> Table:
    """The network's layers with output shapes, parameters, MACs and activations, and their sums."""
    table = _table("", ["layer", "output C x T x F", "at test time", "at training time",
                        "MACs a clip", "input + output"])  # fmt: skip
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.layer, shape, _count(row.test_time), _count(row.training_time),
                      _count(row.macs), _count(row.values))  # fmt: skip
    table.add_section()
    totals = (sum(row.test_time for row in rows), sum(row.training_time for row in rows))
    table.add_row("total", "", *map(_count, (*totals, total_macs(rows))), "")
    return table


def size_lines(size: Size) -> Iterator[str]:
    """Parameters and bytes; a KB is both 1000 and 1024 of them in the challenge's documents."""
    yield f"parameters at test time: {size.parameters}, of them not zero as float16: {size.nonzero}"
    n = size.num_bytes
    yield f"size as float16: {n} B = {n / 1000:.2f} KB of 1000 B = {n / 1024:.2f} KB of 1024 B"


def work_lines(rows: Sequence[LayerRow]) -> Iterator[str]:
    """MACs and memory of a 10 s clip's rows."""
    clip, second = total_macs(rows) / 1e6, macs_per_second(rows) / 1e6
    yield f"MACs: {clip:.1f} million a clip of 10 s, {second:.1f} million a second of audio"
    half, single = (peak_memory(rows, dtype) / 1e6 for dtype in (torch.float16, torch.float32))
    yield (
        f"peak activation memory: {single:.2f} MB a clip in float32, {half:.2f} MB in float16 (the "
        "largest input and output of a layer)"
    )


def limit_table(limits: Sequence[Limit]) -> Table:
    """What the challenge's editions allow, what the network has, and whether that passes."""
    table = _table("Limits of DCASE Task 1, stored in float16",
                   ["edition", "what", "at most", "this network", ""])  # fmt: skip
    for limit in limits:
        most, value = (f"{_count(number)} {limit.unit}" for number in (limit.most, limit.value))
        table.add_row(limit.editions, limit.what, most, value, "pass" if limit.passed else "fail")
    return table


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    """As tables on a terminal; elsewhere in full width, a row a line, cells separated by tabs."""
    for table in tables:
        if console.is_terminal:
            console.print(table)
            continue
        if table.title:
            console.file.write(f"{table.title}\n")
        header = [column.header for column in table.columns]
        for row in (header, *zip(*(column.cells for column in table.columns), strict=True)):
            console.file.write("\t".join(map(_plain, row)) + "\n")


def _plain(cell: RenderableType) -> str:
    """A cell as text without tabs and line ends."""
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return re.sub(r"[\t\n\r]", " ", text)


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
