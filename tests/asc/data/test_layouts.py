import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asc.data import audio_files, open_dataset, read_tau
from asc.task import SCENES

Refused = Callable[..., Any]


def test_tau(tau: Path, refused: Refused) -> None:
    assert open_dataset(tau, "train") == read_tau(tau, "train")
    assert open_dataset(str(tau), "test", SCENES) == read_tau(tau, "test")
    with refused(tau):
        open_dataset(tau, "train", ("cat", "dog"))


def test_train_and_evaluate_folders(
    tmp_path: Path, refused: Refused, class_folders: Callable[..., Path]
) -> None:
    class_folders(tmp_path / "train", cat=2, dog=1, owl=1)
    class_folders(tmp_path / "evaluate", dog=1)
    assert open_dataset(tmp_path, "train").labels == (0, 0, 1, 2)
    evaluate = open_dataset(tmp_path, "evaluate")
    assert evaluate.classes == ("cat", "dog", "owl")
    assert evaluate.labels == (1,)
    class_folders(tmp_path / "evaluate", emu=1)
    with refused(tmp_path / "evaluate" / "emu"):
        open_dataset(tmp_path, "evaluate")


def test_plain_folders_are_split_80_20(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    class_folders(tmp_path, cat=20, dog=5, owl=2)
    train, evaluate = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "evaluate")
    assert Counter(evaluate.labels) == {0: 4, 1: 1, 2: 1}
    assert Counter(train.labels) == {0: 16, 1: 4, 2: 1}
    assert not set(train) & set(evaluate)
    assert train.classes == evaluate.classes == ("cat", "dog", "owl")
    # Pinned: another machine or release must not mix the two.
    held_out = [clip.path.name for clip in evaluate if clip.label == 1]
    assert held_out == ["0.wav"]
    moved = tmp_path.with_name("moved")
    shutil.move(tmp_path, moved)
    assert [c.path.name for c in open_dataset(moved, "evaluate")] == [c.path.name for c in evaluate]


def test_all_clips_of_every_layout(
    tau: Path, tmp_path: Path, class_folders: Callable[..., Path]
) -> None:
    halves = tmp_path / "halves"
    class_folders(halves / "train", cat=2, owl=1)
    class_folders(halves / "evaluate", owl=1)
    plain = class_folders(tmp_path / "plain", cat=6, owl=2)
    for root, count in ((tau, 3), (halves, 4), (plain, 8)):
        train, evaluate = (open_dataset(root, split) for split in ("train", "evaluate"))
        every = open_dataset(root, "all")
        assert len(every) == count and set(every) == {*train, *evaluate}
        assert every.classes == train.classes and every.of is None
        assert train.of == evaluate.of == (8 if root == plain else None)
    class_folders(plain, dog=1)  # one clip is enough if nothing is held out
    assert len(open_dataset(plain, "all")) == 9


def test_errors(tmp_path: Path, refused: Refused, class_folders: Callable[..., Path]) -> None:
    with refused(tmp_path / "no"):
        open_dataset(tmp_path / "no", "train")
    with refused(tmp_path, "evaluation_setup", "train/", "folder per class"):
        open_dataset(tmp_path, "train")
    class_folders(tmp_path, cat=1)
    with refused(tmp_path / "cat", "single"):
        open_dataset(tmp_path, "train")
    with refused(tmp_path, "test split"):
        open_dataset(tmp_path, "test")
    with refused("valid"):
        open_dataset(tmp_path, "valid")  # type: ignore[arg-type]
    class_folders(tmp_path, train=1)
    with refused(tmp_path / "evaluate"):
        open_dataset(tmp_path, "train")


def test_files_to_predict(tau: Path) -> None:
    missing, named = tau / "none.wav", tau / "audio" / "tram-oslo-3-3-s4.wav"
    assert list(audio_files([missing, tau, Path("-")])) == [missing, named, Path("-")]


def test_folders_and_patterns(tmp_path: Path, refused: Refused) -> None:
    files = [tmp_path / name for name in ("b.wav", "a.FLAC", "in/c.ogg", "in/deep/d.mp3")]
    others = [tmp_path / name for name in (".x.wav", "x.txt", ".hidden/x.wav", "in/.x/x.wav")]
    for path in (*files, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "in" / "circle").symlink_to(tmp_path)
    b, a, c, d = files
    assert list(audio_files([tmp_path])) == [a, b]
    assert list(audio_files([c, tmp_path], recursive=True)) == [c, a, b, c, d]
    assert list(audio_files([tmp_path / "*.wav", a])) == [b, a]
    assert list(audio_files([tmp_path / "in" / "d[e]*" / "**" / "*"])) == [d]
    odd = tmp_path / "[b].wav"
    odd.touch()
    assert list(audio_files([odd])) == [odd]  # a name, as it is there
    empty = tmp_path / "empty"
    (empty / "below").mkdir(parents=True)
    with refused(empty, "no audio files", "--recursive"):
        list(audio_files([empty]))
    with refused(empty, "no audio files"):
        list(audio_files([empty], recursive=True))
    with refused("*.aiff", "no such files"):
        list(audio_files([tmp_path / "*.aiff"]))
