"""`asc compare`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of asc evaluate --out.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the comparison as a page, too.")
    ] = None,
) -> None:
    """Compares evaluations of the same clips.

    Runs that differ in nothing but their seed are one system, whose scores are means and standard
    deviations. Of every two systems: the difference of the second to the first, with the interval
    of a paired bootstrap over recording locations, or over clips whose names tell none.

    \b
    Example:
      asc compare results-a results-b --out comparison.html
    """
    from rich.console import Console

    from asc.files import atomic, check_file
    from asc.report.comparison import compare
    from asc.report.comparison_views import comparison_page, comparison_tables
    from asc.report.tables import print_tables

    if out is not None:
        check_file(out, *(inside for folder in folders for inside in Path(folder).glob("*")))
    found = compare(folders)
    if out is not None:
        page = comparison_page(found)
        with atomic(out) as file:
            file.write(page.encode())
    print_tables(Console(), comparison_tables(found))
