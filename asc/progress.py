"""Progress bars, for people only."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, track
from rich.text import Text

T = TypeVar("T")
Advance: TypeAlias = Callable[[int], None]  # takes how many more are done

_quiet = False


def tracked(
    items: Iterable[T], description: str, *, total: int | None = None, completed: int = 0
) -> Iterable[T]:
    """The items, under a progress bar on stderr if somebody is there to see it.

    Args:
        items: what is counted.
        description: of them.
        total: how many there are, where `len(items)` does not say.
        completed: how many of these were done before.
    """
    console = Console(stderr=True)
    return track(
        items,
        description,
        total=total,
        completed=completed,
        console=console,
        transient=True,
        disable=not _is_seen(console),
    )


@contextmanager
def counted(
    description: str, total: int, *, completed: int = 0, unit: str | None = None
) -> Iterator[Advance]:
    """Inside there is such a bar, which is told how much is done; with a unit it says how fast."""
    console = Console(stderr=True)
    if not _is_seen(console):
        yield lambda n: None
        return
    columns = Progress.get_default_columns() + ((_Speed(unit),) if unit else ())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=completed)
        yield partial(progress.advance, task)


class _Speed(ProgressColumn):
    """So many units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else "")


@contextmanager
def quiet() -> Iterator[None]:
    """Inside there are no bars: for what shows by other means how far it is."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def _is_seen(console: Console) -> bool:
    alone = os.environ.get("RANK", "0") == "0"  # or the first of several processes
    return console.is_terminal and alone and not _quiet
