"""Where everything that is written goes: complete or not at all, and without harm to what is there.

`-` is standard output. What is no regular file (a device, a pipe, a descriptor of the shell) is
written through, links are followed, and a file that is replaced keeps its permissions.
"""

import errno
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from asc.errors import UserError


def is_stdout(path: Path) -> bool:
    """Whether a path means standard output: `-`, or a name of the file that it goes to."""
    if str(path) == "-":
        return True
    with suppress(OSError):
        there, stdout = os.stat(path), os.fstat(1)
        return os.path.samestat(there, stdout) and not stat.S_ISCHR(stdout.st_mode)
    return False


def check_file(path: Path, *inputs: Path) -> None:
    """Checks, before a long computation, that its results can be written; leaves nothing behind.

    Args:
        path: of the results.
        inputs: files that the computation reads.

    Raises:
        UserError: the path is a folder, or its folder does not exist, or it is one of the inputs.
        OSError: it cannot be written.
    """
    if is_stdout(path):
        return
    for each in inputs:
        with suppress(OSError):
            if os.path.samefile(path, each) and each.is_file():
                raise UserError(f"{path}: is what is read; choose another file for the result")
    with _naming(path):
        target = _replaceable(path)
        if target is not None:
            _try_in(target.parent)


def check_folder(path: Path) -> None:
    """Checks that files can be made in a folder, or the folder itself; leaves nothing behind.

    Raises:
        UserError: the path is standard output or a file, or lies below one.
        OSError: nothing can be made there.
    """
    if str(path) == "-":
        raise UserError(f"{path}: is standard output, expected a folder")
    with _naming(path):
        there = path.absolute()
        while not _exists(there):
            there = there.parent
        if not there.is_dir():
            below = "" if there == path.absolute() else f"lies below {there}, which "
            raise UserError(f"{path}: {below}is a file, expected a folder")
        _try_in(there)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, if it is not there; a link to nothing, where it leads.

    Raises:
        UserError, OSError: as `check_folder`.
    """
    check_folder(path)
    with _naming(path):
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends well, and leaves it alone otherwise.

    The bytes go to a temporary file beside the target (same file system, so the rename is atomic)
    and reach the disk before it. Standard output and what is no regular file is written through.

    Raises:
        UserError: the path is a folder, or its folder does not exist.
        OSError: the file cannot be written; it names `path`.
    """
    if is_stdout(path):
        with _naming(Path("standard output")):
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.flush()
        return
    with _naming(path):
        target = _replaceable(path)
        if target is None:
            # Appending: descriptors of the shell may have written before us.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            if path.is_file() and not _is_descriptor(path):
                os.ftruncate(descriptor, 0)
            with os.fdopen(descriptor, "wb") as file:
                yield file
            return
        # Not the whole name, which may be as long as the file system allows.
        temporary = target.with_name(f".{target.name[:32]}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            _replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, all or nothing.

    Raises:
        UserError, OSError: as `atomic`.
        ValueError: content with NaN or infinity.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic(path) as file:
        file.write(f"{text}\n".encode())


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """`write_json` for what took long to compute: on failure it is kept elsewhere.

    Raises:
        UserError: the file cannot be written; it says where the results are.
        ValueError: as `write_json`.
    """
    try:
        write_json(path, content)
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        try:
            descriptor, kept = tempfile.mkstemp(prefix="asc-results-", suffix=".json")
            os.close(descriptor)
            write_json(Path(kept), content)
        except OSError:
            raise UserError(f"{path}: cannot be written ({reason})") from error
        raise UserError(
            f"{path}: cannot be written ({reason}); its content is in {kept}"
        ) from error


def _replaceable(path: Path) -> Path | None:
    """The file to replace, at the end of all links; None for what has to be written in place."""
    exists = _exists(path)
    if _is_descriptor(path):
        return None
    if not exists:
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise UserError(f"{path}: its folder does not exist")
        return target
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target = Path(os.path.realpath(path))
    in_place = not path.is_file() or not os.access(target.parent, os.W_OK)
    return None if in_place else target


def _is_descriptor(path: Path) -> bool:
    """Whether a path is a link of /proc to an open file, such as /dev/stderr and /dev/fd/3."""
    with suppress(OSError):
        while path.is_symlink():
            if path.parent.resolve().is_relative_to("/proc"):
                return True
            path = path.parent / path.readlink()
    return False


def _try_in(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"a full disk refuses bytes, not files")


def _exists(path: Path) -> bool:
    """Unlike Path.exists, raises where nothing can exist: names too long, links in a circle."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _replace(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a container's mount of a single file
            raise
        shutil.copyfile(temporary, target)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes errors of the system name what was asked for, not a temporary file or nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
