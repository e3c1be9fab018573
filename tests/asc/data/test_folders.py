import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asc.data import read_folders
from asc.task import SCENES

Refused = Callable[..., Any]


def test_classes_are_sorted(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    clips = read_folders(class_folders(tmp_path, owl=1, cat=2))
    assert clips.classes == ("cat", "owl")
    assert [(clip.path.name, clip.label) for clip in clips] == [
        ("0.wav", 0),
        ("1.wav", 0),
        ("0.wav", 1),
    ]


def test_ten_scenes_keep_their_order(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    clips = read_folders(class_folders(tmp_path, **dict.fromkeys(reversed(SCENES), 1)))
    assert clips.classes == SCENES


def test_given_classes_may_lack_folders(
    tmp_path: Path, refused: Refused, class_folders: Callable[..., Path]
) -> None:
    clips = read_folders(class_folders(tmp_path, park=1, tram=1), SCENES)
    assert clips.classes == SCENES
    assert clips.labels == (4, 9)
    with refused(tmp_path / "tram", "park, bus"):
        read_folders(tmp_path, ("park", "bus"))


def test_other_files_are_skipped(
    tmp_path: Path,
    wav: Callable[..., Path],
    class_folders: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class_folders(tmp_path, cat=1, dog=1)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "._0.wav").write_text("x")
    (tmp_path / ".git").mkdir()
    wav(tmp_path / "cat" / "cat-oslo-1-2-s5.WAV")
    assert read_folders(tmp_path).devices == (None, "s5", None)
    (note,) = (record.getMessage() for record in caplog.records)
    assert note == f"asc: note: {tmp_path}: 3 clips; not read: files .txt (1)"


def test_what_is_not_read_is_said(
    tmp_path: Path,
    wav: Callable[..., Path],
    class_folders: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    refused: Refused,
) -> None:
    class_folders(tmp_path, cat=2, dog=1)
    read_folders(tmp_path)
    assert not caplog.records
    wav(tmp_path / "cat" / "kittens" / "0.wav")
    wav(tmp_path / "stray.wav")
    for name in ("a.m4a", "b.M4A", "c.wma", "LICENSE"):
        (tmp_path / "cat" / name).touch()
    (tmp_path / "cat" / "gone.wav").symlink_to("nowhere.wav")
    read_folders(tmp_path)
    (note,) = (record.getMessage() for record in caplog.records)
    for part in (
        f"{tmp_path}: 3 clips; not read: ",
        "files .m4a (2)",
        "files .wma (1)",
        "files without a suffix (1)",
        "folders inside a class folder (1)",
        "audio beside the class folders (1)",
        "links to nothing, or devices (1)",
    ):
        assert part in note
    (tmp_path / "dog" / "0.wav").rename(tmp_path / "dog" / "0.m4a")
    with refused(tmp_path / "dog", "no audio", "files .m4a (3)"):
        read_folders(tmp_path)


def test_a_single_class_is_noted(
    tmp_path: Path, class_folders: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    class_folders(tmp_path, cat=2)
    read_folders(tmp_path, ("cat", "dog"))
    assert not caplog.records
    read_folders(tmp_path)
    assert "single class, 'cat'" in caplog.text


def test_names_of_classes_that_are_not_utf_8(tmp_path: Path) -> None:
    for name in (b"\xff", "\u00fc".encode()):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        folder.mkdir()
        (folder / "0.wav").touch()
    program = f"""
from pathlib import Path
from asc.data import read_folders
print(ascii(read_folders(Path({str(tmp_path)!r})).classes))
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for locale in ("C", "C.UTF-8")
    }
    assert printed == {"('\\xfc', '\\udcff')\n"}


def test_errors(tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path / "no", "no such folder"):
        read_folders(tmp_path / "no")
    with refused(tmp_path, "no subfolders"):
        read_folders(tmp_path)
    (tmp_path / "cat").mkdir()
    with refused(tmp_path / "cat", "no audio"):
        read_folders(tmp_path)
