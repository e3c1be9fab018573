"""Progress bars, for people only."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias, TypeVar

from rich.console import Console
from rich.progress import Progress, track

T = TypeVar("T")
Advance: TypeAlias = Callable[[int], None]  # takes how many more are done


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
def counted(description: str, total: int) -> Iterator[Advance]:
    """Inside there is such a bar, which is told how much is done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not _is_seen(console)) as progress:
        yield partial(progress.advance, progress.add_task(description, total=total))


def _is_seen(console: Console) -> bool:
    alone = os.environ.get("RANK", "0") == "0"  # or the first of several processes
    return console.is_terminal and alone
