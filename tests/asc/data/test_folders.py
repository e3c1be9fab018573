from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    tmp_path: Path, wav: Callable[..., Path], class_folders: Callable[..., Path]
) -> None:
    class_folders(tmp_path, cat=1)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "._0.wav").write_text("x")
    (tmp_path / ".git").mkdir()
    wav(tmp_path / "cat" / "cat-oslo-1-2-s5.WAV")
    assert read_folders(tmp_path).devices == (None, "s5")


def test_errors(tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path / "no", "no such folder"):
        read_folders(tmp_path / "no")
    with refused(tmp_path, "no subfolders"):
        read_folders(tmp_path)
    (tmp_path / "cat").mkdir()
    with refused(tmp_path / "cat", "no audio"):
        read_folders(tmp_path)
