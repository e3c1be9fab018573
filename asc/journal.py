"""Results that take long to compute, kept row by row, so that nothing is lost by an interruption.

A journal is a file of rows of float64 numbers, each with a digest of itself and of all that it
depends on. A row counts as being there if its digest is right: whatever kills a process or a
machine, no half-written row is trusted, nor one of other weights, clips or settings. Several
processes may write to one journal.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_DIGEST = 16  # bytes


class Journal:
    """The rows of one computation; in a `with` block, the file is gone once that is left in peace.

    Args:
        path: the file, made with the first row, in its folder, which is there.
        depends: for each row, all that it depends on, as bytes.
        width: numbers in a row.
    """

    def __init__(self, path: Path, depends: Iterable[bytes], width: int) -> None:
        self.path, self._depends, self._width = path, tuple(depends), width

    @property
    def _size(self) -> int:
        return 8 * self._width + _DIGEST

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """All rows (n, width), and which of them are there, (n,)."""
        count = len(self._depends)
        rows, there = np.zeros((count, self._width)), np.zeros(count, dtype=bool)
        content = b""
        with suppress(FileNotFoundError):
            content = self.path.read_bytes()
        for index in range(min(count, len(content) // self._size)):
            record = content[index * self._size : (index + 1) * self._size]
            if record[-_DIGEST:] == self._digest(index, record[:-_DIGEST]):
                rows[index], there[index] = np.frombuffer(record[:-_DIGEST]), True
        return rows, there

    def write(self, start: int, rows: NDArray[np.float64]) -> None:
        """Keeps rows (n, width), the first of which has the number `start`."""
        content = b""
        for index, row in enumerate(rows, start):
            numbers = np.ascontiguousarray(row, dtype=np.float64).tobytes()
            content += numbers + self._digest(index, numbers)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, content, start * self._size)
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.path.unlink(missing_ok=True)

    def _digest(self, index: int, numbers: bytes) -> bytes:
        return hashlib.sha256(self._depends[index] + numbers).digest()[:_DIGEST]


def digest(*parts: Any) -> bytes:
    """Of what rows depend on: bytes as they are, all else by its repr."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode(errors="surrogateescape")
        whole.update(len(data).to_bytes(8) + data)
    return whole.digest()
