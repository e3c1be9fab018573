"""What is said of recordings while they are listened to, line by line, and at the end."""

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from asc.errors import UserError, note
from asc.level import far_off
from asc.report.tables import printable
from asc.timeline import STDIN, Failure, Found, Windows

_WIDEST = 60  # column of names on a terminal


class Lines:
    """A line for each window, or file, as soon as it is known.

    On a terminal columns are aligned; elsewhere tabs separate them. JSON is an object a line.

    Args:
        paths: the recordings to come, for the width of their column.
        classes: of the network, likewise.
        windowed: whether start and end are told.
        as_json: whether lines are JSON.
        out: where they go.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        classes: Sequence[str],
        *,
        windowed: bool,
        as_json: bool = False,
        out: TextIO | None = None,
    ) -> None:
        self._out = out or sys.stdout
        self._windowed, self._as_json, self._begun = windowed, as_json, False
        longest = max((len(printable(path)) for path in paths), default=4)
        label = max(map(len, map(printable, classes)), default=5)
        times = [9, 9] if windowed else []
        self._widths = [min(_WIDEST, max(4, longest)), *times, max(5, label)]

    def say(self, found: Found) -> None:
        """Writes the line and sends it off."""
        prediction = found.prediction
        if self._as_json:
            times = {"start": found.start, "end": found.end} if self._windowed else {}
            content = {"file": printable(found.path), **times, **asdict(prediction)}
            self._out.write(f"{json.dumps(content)}\n")
        else:
            if not self._begun:
                times_ = ["start", "end"] if self._windowed else []
                self._write(["file", *times_, "label", "probability"])
            seconds = [f"{t:.2f}" for t in (found.start, found.end)] if self._windowed else []
            probability = f"{100 * prediction.probabilities[prediction.label]:.1f} %"
            self._write([str(found.path), *seconds, prediction.label, probability])
        self._begun = True
        self._out.flush()

    def _write(self, cells: Sequence[str]) -> None:
        plain = [re.sub(r"[\t\n\r]", " ", printable(cell)) for cell in cells]
        if self._out.isatty():
            *some, last = plain
            widths = self._widths
            plain = [f"{cell:{width}}" for cell, width in zip(some, widths, strict=True)] + [last]
        self._out.write(("  " if self._out.isatty() else "\t").join(plain) + "\n")


class Remarks:
    """What the user should know of the recordings, on stderr; what fails at once, the rest counted.

    Args:
        windows: that were asked for.
        expected: level of the recordings that the network was trained on, in dB, if it is known.
        strict: whether the first failure ends it all, as a UserError.
    """

    def __init__(self, windows: Windows | None, expected: float | None, *, strict: bool) -> None:
        self.failed = 0
        self._windows, self._expected, self._strict = windows, expected, strict
        self._levels: dict[Path, list[float]] = defaultdict(list)
        self._repeated: list[Path] = []
        self._go_on: list[Path] = []

    def look_at(self, found: Found | Failure) -> None:
        """Of each, as it comes."""
        if isinstance(found, Failure):
            if self._strict:
                raise UserError(found.message)
            self.failed += 1
            _say(found.message)
            return
        if found.path != STDIN:  # which may never end
            self._levels[found.path].append(found.level)
        if found.repeated:
            self._repeated.append(found.path)
        if found.goes_on:
            self._go_on.append(found.path)
        if found.path == STDIN and found.number == 0:  # which may have no end to say it at
            remark_on_levels([Path("standard input")], [found.level], self._expected)

    def finish(self) -> None:
        """When all that is heard has been."""
        seconds = self._windows.length if self._windows else Windows().length
        if self._repeated:
            _say(f"{_count(self._repeated)} shorter than {seconds:g} s and repeated to fill it")
        if self._go_on:
            _say(
                f"{_count(self._go_on)} longer than 10 s, and only the first 10 s were looked at; "
                "--window 10 goes through all of it"
            )
        means = {path: _mean(levels) for path, levels in self._levels.items()}
        remark_on_levels(list(means), list(means.values()), self._expected)
        for path, mean in means.items():
            if math.isnan(mean) and self._windows:  # else whoever read it has said so
                note(f"{path}: is silent")


def remark_on_levels(
    paths: Sequence[Path], levels: Sequence[float], expected: float | None
) -> None:
    """Says on stderr if recordings are of another level than the network expects."""
    if warning := far_off(zip(map(printable, paths), levels, strict=True), expected):
        _say(warning)


def _count(paths: Sequence[Path]) -> str:
    first = "standard input" if paths[0] == STDIN else printable(paths[0])
    return f"{first} is" if len(paths) == 1 else f"{len(paths)} recordings, {first} the first, are"


def _mean(levels: Sequence[float]) -> float:
    known = [level for level in levels if not math.isnan(level)]
    return sum(known) / len(known) if known else math.nan


def _say(text: str) -> None:
    print("asc:", " ".join(printable(text).split()), file=sys.stderr)
