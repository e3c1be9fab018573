"""`asc info`."""

from pathlib import Path
from typing import Annotated

import typer

from asc.cli.options import Weights


def command(
    weights: Weights,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the numbers to a file; -: standard output."
        ),
    ] = None,
) -> None:
    """Prints a network's layers, size, MACs and memory.

    They are counted from the network itself, for a clip of 10 s, and held against the limits of
    the DCASE challenge's editions.

    \b
    Example:
      asc info run/folded.pt --json info.json
    """
    from rich.console import Console

    from asc.checkpoint import load_model
    from asc.complexity import limits, parameter_table, size, summary
    from asc.files import check_file, is_stdout, write_json
    from asc.report.tables import (
        complexity_table,
        limit_table,
        print_tables,
        printable,
        size_lines,
        work_lines,
    )

    if json_file is not None:
        check_file(json_file, weights)
    model = load_model(weights)
    rows = parameter_table(model)
    taken = json_file is not None and is_stdout(json_file)  # the tables make way
    console = Console(stderr=taken)
    print_tables(console, [complexity_table(rows)])
    for line in (*size_lines(size(model)), *work_lines(rows)):
        console.print(line, soft_wrap=True)
    print_tables(console, [limit_table(limits(model))])
    names = printable(", ".join(model.classes))
    console.print("classes:", names, markup=False, soft_wrap=True)
    if json_file is not None:
        named = {"weights": printable(weights), "classes": [printable(c) for c in model.classes]}
        write_json(json_file, named | summary(model))
