"""Files that appear under their names only once they are complete."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends well, and leaves it alone otherwise.

    The bytes go to a temporary file beside the target (same file system, so the rename is atomic)
    and reach the disk before it.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, all or nothing.

    Raises:
        OSError: the file cannot be written.
        ValueError: content with NaN or infinity.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic(path) as file:
        file.write(f"{text}\n".encode())
