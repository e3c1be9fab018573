"""What figures are tied to: the commit and the compiler."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import machine


def test_the_commit_says_whether_the_tree_differs(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        ended = subprocess.run(["git", "-C", tmp_path, *names, *command], check=True,
                               capture_output=True, text=True)  # fmt: skip
        return ended.stdout.strip()

    assert machine.commit(tmp_path) == "unknown"
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("results, say")
    assert machine.commit(tmp_path) == head
    (tmp_path / "file").write_text("b")
    assert machine.commit(tmp_path) == f"{head} + changes"


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        (b"\0GCC: (Debian 12.2.0-14) 12.2.0\0GCC: (Debian 12.2.0-14) 12.2.0\0",
         "GCC: (Debian 12.2.0-14) 12.2.0"),
        (b"\0GCC: (GNU) 13.1.0\0clang version 15.0.6\0", "GCC: (GNU) 13.1.0, clang version 15.0.6"),
        (b"\0", "unknown"),
    ],
)  # fmt: skip
def test_the_compiler_is_read_from_the_kernels(
    tmp_path: Path, comment: bytes, expected: str
) -> None:
    (tmp_path / "_cpu.abi3.so").write_bytes(b"\x7fELF\xff" + comment + b"\xfe")
    (tmp_path / "_cuda.abi3.so").write_bytes(b"\0GCC: (GNU) 1.2.3\0")
    assert machine.compiler(tmp_path) == expected
