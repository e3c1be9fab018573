"""Cases, and the file that keeps what came of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asc.files import atomic
from benchmarks.report import four_digits

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One measurement or check: run() gives its row of numbers and strings, or raises.

    name: unique in its section. peer: somebody else's code, whose failure is no failure of ours.
    rank: cases of lower rank run first, whatever their section.
    """

    name: str
    run: Callable[[], Row]
    peer: bool = False
    rank: int = 0


class Results:
    """FOLDER/gpu_suite.json: the row of every finished case by section, rewritten after each.

    A row with "error" is a failure's; `running` names the case that a process is busy with.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gpu_suite.json"
        self.rows: dict[str, dict[str, Row]] = {}
        self.running: list[str] | None = None
        self.load()

    def load(self) -> None:
        if self.path.exists():
            content = json.loads(self.path.read_text())
            self.rows, self.running = content["sections"], content["running"]

    def save(self, **more: Any) -> None:
        content = {"sections": self.rows, "running": self.running, **more}
        text = json.dumps(content, indent=1, allow_nan=False)
        with atomic(self.path) as file:
            file.write(text.encode() + b"\n")

    def start(self, section: str, name: str) -> None:
        self.running = [section, name]
        self.save()

    def finish(self, section: str, name: str, row: Row) -> None:
        self.rows.setdefault(section, {})[name] = four_digits(row)
        self.running = None
        self.save()

    def forget_errors(self, sections: list[str]) -> None:
        """Lets what failed be tried again."""
        for section in sections:
            rows = self.rows.get(section, {})
            self.rows[section] = {name: row for name, row in rows.items() if "error" not in row}
        self.running = None
        self.save()

    def failures(self) -> list[tuple[str, str, Row]]:
        return [
            (section, name, row)
            for section, rows in self.rows.items()
            for name, row in rows.items()
            if "error" in row
        ]

    def count(self) -> int:
        return sum(len(rows) for rows in self.rows.values())
