"""The scene timeline of recordings: as a table, and as a picture."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asc.errors import UserError
from asc.files import atomic, check_file
from asc.report.tables import printable
from asc.timeline import Found

MOST_DRAWN = 20  # recordings in one picture
_LEGIBLE = 0.02  # probability from which a class is seen in the picture
_BAR = 0.08  # height of the bar of labels, where all probabilities together are 1


def check_timeline(path: Path, recordings: int) -> None:
    """Checks, before anything is heard, that a timeline of so many recordings can be written.

    Raises:
        UserError, OSError: a suffix that is neither .csv nor .png, too many recordings for one
            picture, or as `asc.files.check_file`.
    """
    if path.suffix.lower() not in (".csv", ".png"):
        raise UserError(f"{path}: a timeline is a .csv or a .png file")
    if path.suffix.lower() == ".png" and recordings > MOST_DRAWN:
        raise UserError(
            f"{path}: {recordings} recordings are too many for one picture ({MOST_DRAWN} at most); "
            "a .csv file takes any number"
        )
    check_file(path)


def write_timeline(path: Path, found: Sequence[Found], classes: Sequence[str]) -> None:
    """Writes a timeline, all or nothing: a table or, where the suffix says so, a picture.

    The table has a row a window: file, start, end (seconds), label, and the probability of each
    class, in a column of its name. The picture has a panel a recording.

    Args:
        found: the windows of a recording in their order, one recording after the other.
        classes: of the network.

    Raises:
        UserError, OSError: as `asc.files.atomic`.
    """
    content = _picture(found, classes) if path.suffix.lower() == ".png" else _table(found, classes)
    with atomic(path) as file:
        file.write(content)


def _table(found: Sequence[Found], classes: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "start", "end", "label", *classes])
    for each in found:
        p = each.prediction.probabilities
        times = (f"{each.start:.3f}", f"{each.end:.3f}")
        rows.writerow(
            [printable(each.path), *times, each.prediction.label, *(p[c] for c in classes)]
        )
    return text.getvalue().encode()


def _picture(found: Sequence[Found], classes: Sequence[str]) -> bytes:
    recordings: list[list[Found]] = []
    for each in found:
        before = recordings[-1][-1] if recordings else None
        if before is None or each.path != before.path or each.number <= before.number:
            recordings.append([])
        recordings[-1].append(each)
    figure = Figure(figsize=(12, 1 + 2.4 * len(recordings)), layout="constrained")
    panels = figure.subplots(len(recordings), 1, squeeze=False)[:, 0]
    colours = _colours(len(classes))
    for axes, windows in zip(panels, recordings, strict=True):
        _draw(axes, windows, classes, colours)
    highest = [max(each.prediction.probabilities[name] for each in found) for name in classes]
    handles, names = panels[0].get_legend_handles_labels()
    shown = [(h, n) for h, n, p in zip(handles, names, highest, strict=True) if p >= _LEGIBLE]
    figure.legend(*zip(*shown, strict=True), loc="outside right upper", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def _draw(axes: Axes, windows: Sequence[Found], classes: Sequence[str], colours: Any) -> None:
    """Probabilities over time, stacked, and above them a bar of the labels.

    A window stands for the time around its centre, up to half way to its neighbours' centres.
    """
    edges = _edges(windows)
    unit, scale = ("min", 60.0) if edges[-1] > 300 else ("s", 1.0)
    times = np.repeat(edges / scale, 2)[1:-1]
    p = np.array([[each.prediction.probabilities[c] for c in classes] for each in windows])
    names = [printable(name).replace("$", r"\$") for name in classes]  # which begins a formula
    axes.stackplot(times, np.repeat(p, 2, axis=0).T, colors=colours, labels=names, linewidth=0)
    for each, begin, end in zip(windows, edges, edges[1:], strict=False):
        colour = colours[classes.index(each.prediction.label)]
        axes.axvspan(begin / scale, end / scale, 1 - _BAR, 1, color=colour, linewidth=0)
    axes.set_xlim(times[0], times[-1])
    axes.set_ylim(0, 1 / (1 - 1.5 * _BAR))
    axes.set_yticks([0, 0.5, 1])
    title = printable(windows[0].path.name).replace("$", r"\$")
    axes.set(xlabel=unit, ylabel="probability")
    axes.set_title(title, loc="left", fontsize="medium")


def _edges(windows: Sequence[Found]) -> Any:
    """Where each window's share of the time begins and, last, where the last one's ends."""
    centres = np.array([(each.start + each.end) / 2 for each in windows])
    return np.concatenate([[windows[0].start], (centres[:-1] + centres[1:]) / 2, [windows[-1].end]])


def _colours(count: int) -> Any:
    if count <= 10:
        return [colormaps["tab10"](i) for i in range(count)]
    if count <= 20:
        return [colormaps["tab20"](i) for i in range(count)]
    return [colormaps["turbo"](i / math.ceil(count - 1)) for i in range(count)]
