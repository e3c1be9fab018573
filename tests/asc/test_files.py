import errno
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asc.errors import UserError
from asc.files import atomic, check_file, check_folder, make_folder, write_json, write_results

Refused = Callable[..., Any]
NOWHERE = Path("/proc/no.json")  # where not even root can make files


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with atomic(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, None], "b": "\u00fc"})
    assert json.loads(path.read_text()) == {"a": [1, None], "b": "\u00fc"}
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text())["a"] == [1, None]


def test_links_are_followed_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.touch()
    target.chmod(0o640)
    link.symlink_to("folder/target")
    check_file(link)
    write_json(link, {"a": 1})
    assert link.is_symlink() and json.loads(target.read_text()) == {"a": 1}
    assert target.stat().st_mode & 0o777 == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to("folder/new")
    write_json(dangling, {})
    assert dangling.is_symlink() and (tmp_path / "folder" / "new").is_file()


def test_what_is_no_regular_file_is_written_through(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    check_file(pipe)
    write_json(pipe, {"a": 1})
    assert pipe.is_fifo()  # else the reader waits for ever, and /dev/null below is in danger
    reader.join()
    assert json.loads(read[0]) == {"a": 1}
    (tmp_path / "null").symlink_to("/dev/null")  # not itself: the tests may run as root
    write_json(tmp_path / "null", {})
    assert Path("/dev/null").is_char_device() and (tmp_path / "null").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "out"])
def test_standard_output(tmp_path: Path, name: str) -> None:
    """Also where the shell has sent it to a file, and in order with what is printed."""
    program = f"""
from pathlib import Path
from asc.files import check_file, is_stdout, write_json
assert is_stdout(Path("{name}"))
print("before")
check_file(Path("{name}"))
write_json(Path("{name}"), {{}})
print("after")
"""
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", program], check=True, stdout=out, cwd=tmp_path)
    assert (tmp_path / "out").read_text() == "before\n{}\nafter\n"
    assert os.listdir(tmp_path) == ["out"]


def test_descriptors_of_the_shell_keep_what_they_hold(tmp_path: Path) -> None:
    program = 'from asc.files import *; write_json(Path("/dev/stderr"), {})'
    with (tmp_path / "log").open("w") as log:
        log.write("before\n")
        log.flush()
        subprocess.run([sys.executable, "-c", program], check=True, stderr=log)
    assert (tmp_path / "log").read_text() == "before\n{}\n"


def test_a_file_that_cannot_be_replaced_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that is mounted into a container, alone."""
    path = tmp_path / "file"
    path.write_text("something longer than what follows")
    inode = path.stat().st_ino

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", busy)
        write_json(path, {})
    assert path.read_text() == "{}\n" and path.stat().st_ino == inode
    path.write_text("something longer than what follows")
    access = os.access
    monkeypatch.setattr(os, "access", lambda where, mode: where != tmp_path and access(where, mode))
    check_file(path)
    write_json(path, {})
    assert path.read_text() == "{}\n" and path.stat().st_ino == inode
    assert os.listdir(tmp_path) == ["file"]


def test_names_as_long_as_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("\u00fc" * 127)
    check_file(path)
    write_json(path, {})
    assert path.is_file()


def test_what_cannot_be_written_is_found_out_before(tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path, "is a folder"):
        check_file(tmp_path)
    with refused(tmp_path / "no" / "file", "its folder does not exist"):
        check_file(tmp_path / "no" / "file")
    circle = tmp_path / "circle"
    circle.symlink_to("circle")
    for path in (NOWHERE, tmp_path / ("x" * 300), circle):
        for check in (check_file, check_folder):
            with pytest.raises(OSError) as error:
                check(path)
            assert error.value.filename in (str(path), str(path.absolute()))
    assert os.listdir(tmp_path) == ["circle"]


def test_results_do_not_replace_what_is_read(tmp_path: Path, refused: Refused) -> None:
    weights, link = tmp_path / "w.pt", tmp_path / "link.json"
    weights.touch()
    link.symlink_to(weights)
    for path in (weights, link):
        with refused(path, "is what is read"):
            check_file(path, tmp_path / "none", weights)
    check_file(tmp_path / "other", weights)


def test_files_that_are_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename would replace them all the same."""
    path = tmp_path / "file"
    path.touch()
    monkeypatch.setattr(os, "access", lambda where, mode: where != path)  # root may do everything
    with pytest.raises(PermissionError):
        check_file(path)
    with pytest.raises(PermissionError), atomic(path):
        pass


def test_folders(tmp_path: Path, refused: Refused) -> None:
    check_folder(tmp_path / "new" / "folder")
    assert not any(tmp_path.iterdir())
    file = tmp_path / "file"
    file.touch()
    with refused(file, "is a file, expected a folder"):
        check_folder(file)
    with refused(file / "new", f"lies below {file}, which is a file"):
        check_folder(file / "new")
    (tmp_path / "link").symlink_to("target")
    make_folder(tmp_path / "link")
    assert (tmp_path / "target").is_dir() and (tmp_path / "link").is_symlink()
    with refused("-", "standard output"):
        check_folder(Path("-"))


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error, atomic(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as write() does, without a name
    assert error.value.filename == str(tmp_path / "file")


def test_results_are_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with refused(NOWHERE, "cannot be written (No such file or directory)", tmp_path / "asc-result"):
        write_results(NOWHERE, {"a": 1})
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == {"a": 1}
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.raises(UserError, match="cannot be written"):
        write_results(NOWHERE, {"a": 1})
