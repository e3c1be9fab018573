"""Arrays that take long to compute, in a file: filled row by row, then mapped into memory.

The file is a `.npy` of all rows with a mark of 8 bytes for each behind them, which numpy does not
look at. A row counts as being there if its mark is the one asked for, and marks are written after
the rows have reached the disk: whatever kills a process or a machine, no half-written row is
trusted, and the next process goes on where this one stopped. While rows are missing the file is
called `.part`; a complete file is never written to again, so that whoever has mapped it keeps it.
"""

import fcntl
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from asc.errors import UserError
from asc.files import make_folder
from asc.progress import tracked
from asc.threads import in_threads

Rows: TypeAlias = NDArray[np.float32]
Marks: TypeAlias = NDArray[np.uint64]

KEEP_EVERY = 5.0  # seconds of work that a kill may cost


def filled(
    path: Path, marks: Marks, row: tuple[int, ...], compute: Callable[[int], Rows], what: str
) -> Rows:
    """The rows of a file, mapped; those that it lacks are computed by all cores.

    Args:
        path: the file, made or completed if need be.
        marks: what each row depends on, as a number; a row under another mark is computed anew.
        row: shape of a row.
        compute: row number -> row, float32. Called in threads.
        what: the rows in a word, for the progress bar and messages.

    Returns:
        (len(marks), *row), mapped privately: to write to it changes no file.

    Raises:
        UserError: the disk has too little room, which is said before anything is computed.
        OSError: the file cannot be written.
        Whatever `compute` raises; the rows computed before are kept.
    """
    layout = _Layout(len(marks), row)
    if np.array_equal(layout.marks(path), marks):
        return layout.mapped(path)
    make_folder(path.parent)
    part = path.with_suffix(".part")
    with _locked(part, what) as descriptor:
        there = layout.marks(path)
        if np.array_equal(there, marks):  # another process has been faster
            part.unlink(missing_ok=True)
            return layout.mapped(path)
        older = layout.mapped(path) if there.any() else None
        kept = layout.marks(part)
        _check_room(part, layout.size, what)
        layout.begin(descriptor, kept)

        def write(index: int) -> int:
            taken_over = older is not None and there[index] == marks[index]
            value = older[index] if taken_over else compute(index)  # type: ignore[index]
            _write(descriptor, np.ascontiguousarray(value).data.cast("B"), layout.start(index))
            return index

        def keep(written: list[int]) -> None:
            os.fdatasync(descriptor)
            kept[written] = marks[written]
            _write(descriptor, kept.data.cast("B"), layout.marks_start)

        _fill(write, keep, np.flatnonzero(kept != marks).tolist(), len(marks), what)
        os.fsync(descriptor)
        os.replace(part, path)
    return layout.mapped(path)


def _fill(
    write: Callable[[int], int],
    keep: Callable[[list[int]], None],
    missing: list[int],
    total: int,
    what: str,
) -> None:
    """Writes the missing rows and keeps them every few seconds and at the end, however that comes.

    Args:
        write: writes a row, by its number, which it returns.
        keep: marks rows as written.
        missing: numbers of the rows to write.
        total, what: for the progress bar: how many rows there are, and the word for them.
    """
    written: list[int] = []
    last = time.monotonic()
    try:
        with in_threads(write, missing) as indices:
            for index in tracked(indices, what, total=total, completed=total - len(missing)):
                written.append(index)
                if time.monotonic() - last > KEEP_EVERY:
                    keep(written)
                    written.clear()
                    last = time.monotonic()
    finally:
        keep(written)


@dataclass(frozen=True)
class _Layout:
    """Where things are in the file."""

    rows: int
    row: tuple[int, ...]

    @property
    def header(self) -> bytes:
        buffer = io.BytesIO()
        npy.write_array_header_1_0(
            buffer,
            {
                "descr": npy.dtype_to_descr(np.dtype(np.float32)),
                "fortran_order": False,
                "shape": (self.rows, *self.row),
            },
        )
        return buffer.getvalue()

    def start(self, index: int) -> int:
        return len(self.header) + index * 4 * int(np.prod(self.row))

    @property
    def marks_start(self) -> int:
        return self.start(self.rows)

    @property
    def size(self) -> int:
        return self.marks_start + 8 * self.rows

    def marks(self, path: Path) -> Marks:
        """The marks of the rows that a file holds; all 0 if it is not there, or no such file."""
        with suppress(OSError), path.open("rb") as file:
            header = file.read(len(self.header))
            if header == self.header and os.fstat(file.fileno()).st_size == self.size:
                file.seek(self.marks_start)
                return np.fromfile(file, np.uint64, self.rows)
        return np.zeros(self.rows, np.uint64)

    def mapped(self, path: Path) -> Rows:
        shape = (self.rows, *self.row)
        return np.memmap(path, np.float32, "c", len(self.header), shape)

    def begin(self, descriptor: int, kept: Marks) -> None:
        """Makes a file that holds no other rows than those kept."""
        os.ftruncate(descriptor, self.size)
        _write(descriptor, kept.data.cast("B"), self.marks_start)
        _write(descriptor, memoryview(self.header), 0)


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def _check_room(part: Path, size: int, what: str) -> None:
    """UserError unless the disk has room for what the file still lacks."""
    needed = size - 512 * part.stat().st_blocks
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        if part.stat().st_size == 0:
            part.unlink()
        raise UserError(
            f"{part.parent}: the {what} need {needed / 1e9:.1f} GB more there, and the disk has "
            f"{free / 1e9:.1f} GB free"
        )


@contextmanager
def _locked(path: Path, what: str) -> Iterator[int]:
    """A file of our own, open to be written, its folder being there; waits for other processes."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"asc: waiting for a process that makes the {what}, {path}", file=sys.stderr)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_open(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether a file still has its name, which the process before us may have taken from it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
