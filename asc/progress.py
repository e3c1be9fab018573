"""Progress bars, for people only."""

import os
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


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
    alone = os.environ.get("RANK", "0") == "0"  # or the first of several processes
    return track(
        items,
        description,
        total=total,
        completed=completed,
        console=console,
        transient=True,
        disable=not (console.is_terminal and alone),
    )
