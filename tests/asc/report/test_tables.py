import io
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asc.complexity import LayerRow, Limit, Size
from asc.metrics import score
from asc.report.tables import (
    complexity_table,
    limit_table,
    print_tables,
    score_tables,
    size_lines,
    work_lines,
)

P = np.array([[0.5, 0.5, 0], [0.2, 0.8, 0]])


def text(tables: Iterable[Table]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_scores_of_two_systems() -> None:
    by_masks = {
        masks: score(p, np.array([0, 1]), ("cat", "dog", "owl"), ["a", "s1"])
        for masks, p in ((0, P), (30, P[::-1]))
    }
    tables = list(score_tables(by_masks))
    assert len(tables) == 3
    output = text(tables)
    for part in ("no TTA", "30 TTA", "cat", "s1", "0.458", "1.151", "100.0 %", " 0.0 %"):
        assert part in output  # log losses: -(log 0.5 + log 0.8) / 2 and -(log 0.2 + log 0.5) / 2
    (owl,) = (line for line in output.splitlines() if "owl" in line)
    assert owl.count(" - ") == 4  # no clips, no scores


def test_names_of_classes_and_devices_are_no_markup() -> None:
    classes = ("tram [x]", "tram [y]", "caf\udce9")
    scores = score(P, np.array([0, 1]), classes, ["Zoom F8 [/left]", "[red]"])
    output = text(score_tables({0: scores}))
    for name in (*classes[:2], "caf\ufffd", "Zoom F8 [/left]", "[red]"):
        assert name in output


def test_no_table_of_devices_that_nobody_knows() -> None:
    scores = score(P, np.array([0, 1]), ("cat", "dog", "owl"), [None, None])
    assert len(list(score_tables({0: scores}))) == 2


def test_complexity() -> None:
    rows = [
        LayerRow("one", (64, 215, 128), 1500, 2000, 7_000_000, 1_000_000),
        LayerRow("two", (10,), 500, 500, 3_000_001, 20),
    ]
    output = text([complexity_table(rows)])
    for part in ("64 x 215 x 128", "1 500", "2 000", "2 500", "7 000 000", "10 000 001"):
        assert part in output
    assert list(work_lines(rows)) == [
        "MACs: 10.0 million a clip of 10 s, 1.0 million a second of audio",
        "peak activation memory: 4.00 MB a clip in float32, 2.00 MB in float16 (the largest input "
        "and output of a layer)",
    ]
    assert list(size_lines(Size(62_474, 62_000, 124_948))) == [
        "parameters at test time: 62474, of them not zero as float16: 62000",
        "size as float16: 124948 B = 124.95 KB of 1000 B = 122.02 KB of 1024 B",
    ]


def test_limits() -> None:
    lines = text([limit_table([Limit("2021", "x", "B", 5, 1000), Limit("2022", "y", "MAC", 6, 5)])])
    (first,) = (line for line in lines.splitlines() if "2021" in line)
    (second,) = (line for line in lines.splitlines() if "2022" in line)
    assert "1 000 B" in first and " 5 B" in first and "pass" in first
    assert " 5 MAC" in second and " 6 MAC" in second and "fail" in second


def test_off_a_terminal_rows_are_lines_of_cells_between_tabs() -> None:
    """In full width, and without marks that only a terminal understands."""
    name = "[b]x" + 300 * "y" + "\t\n.wav"
    table = Table("file", "label")
    table.add_row(Text(name), Text("[/left]"))
    scores = score(P, np.array([0, 1]), ("cat", "[/dog]", "owl"), ["[/left]", "s1"])
    for width in (40, 400):
        console = Console(width=width, file=io.StringIO())
        print_tables(console, [table])
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        shown = name.replace("\t", " ").replace("\n", " ")
        assert lines == ["file\tlabel", f"{shown}\t[/left]"]
        print_tables(console, score_tables({0: scores}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for line in ("By class\nclass\tclips\tlog loss no TTA\taccuracy no TTA\n",
                 "\n[/dog]\t1\t0.223\t100.0 %\n", "\n[/left]\t1\t0.693\t"):  # fmt: skip
        assert line in text
    terminal = Console(width=80, file=io.StringIO(), force_terminal=True)
    print_tables(terminal, [table])
    assert "\t" not in terminal.file.getvalue()  # type: ignore[attr-defined]
