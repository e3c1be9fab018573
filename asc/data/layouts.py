"""One door to every data set layout."""

import glob
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from asc.data.clips import Clip, ClipList
from asc.data.folders import is_audio, read_folders
from asc.data.tau import SETUP_FOLDER, Split, read_tau
from asc.errors import UserError
from asc.task import SCENES

EVALUATE_SHARE = 0.2


def open_dataset(root: str | Path, split: Split, classes: Sequence[str] | None = None) -> ClipList:
    """Opens one split of a data set, whatever its layout.

    1. TAU: `root/evaluation_setup/` is there, see `asc.data.read_tau`.
    2. `root/train/<class>/*.wav` and `root/evaluate/<class>/*.wav`; the classes are those of
       `train`.
    3. `root/<class>/*.wav`: of every class 20 % (at least one clip) is held out for
       evaluation. Which ones is decided by a hash of the file names, so it is the same on every
       machine; recordings of one place may end up on both sides.

    Args:
        root: the data set's folder.
        split: "train", "evaluate", "all" (both), or "test" (TAU only: clips without labels).
        classes: for layouts 2 and 3, the classes in label order (of a trained model, say), of which
            some may have no folder; None takes them from the folders.

    Raises:
        UserError: none of these layouts, or what the readers raise.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such data set folder")
    if split not in get_args(Split):
        raise UserError(f"unknown split '{split}': choose one of {', '.join(get_args(Split))}")
    if (root / SETUP_FOLDER).is_dir():
        if classes is not None and tuple(classes) != SCENES:
            raise UserError(
                f"{root}: a TAU data set has the ten TAU scenes as classes, in their order"
            )
        return read_tau(root, split)
    if split == "test":
        raise UserError(f"{root}: only data sets in TAU layout have a test split")
    train, evaluate = root / "train", root / "evaluate"
    if train.is_dir() and evaluate.is_dir():
        if split == "train":
            return read_folders(train, classes)
        held_out = read_folders(evaluate, classes or read_folders(train).classes)
        return held_out if split == "evaluate" else read_folders(train, held_out.classes) + held_out
    if train.is_dir() or evaluate.is_dir():
        missing = evaluate if train.is_dir() else train
        raise UserError(f"{missing}: no such folder (train and evaluate come in pairs)")
    try:
        clips = read_folders(root, classes)
    except UserError as error:
        raise UserError(
            f"{error} (a data set is a TAU folder with {SETUP_FOLDER}/, or train/ and evaluate/ "
            "with a folder per class in each, or one folder per class)"
        ) from error
    return clips if split == "all" else _held_out(root, clips, split)


def audio_files(paths: Iterable[Path], *, recursive: bool = False) -> Iterator[Path]:
    """The files to predict, in the order of what names them, and by name inside of it.

    Args:
        paths: files, which need not be there; data sets in TAU layout, of which those of the test
            split are meant; other folders, of which the audio files (by suffix) that are not
            hidden; and patterns with `*`, `?`, `[...]` or `**` that the shell has left alone.
        recursive: whether the folders inside folders are meant too.

    Raises:
        UserError: as `read_tau`; a folder or pattern without any files.
    """
    for path in paths:
        if (path / SETUP_FOLDER).is_dir():
            yield from (clip.path for clip in read_tau(path, "test"))
        elif path.is_dir():
            yield from _in_folder(path, recursive)
        elif not path.exists() and glob.has_magic(str(path)):
            found = sorted(map(Path, glob.glob(str(path), recursive=True)))
            files = [name for name in found if not name.is_dir()]
            if not files:
                raise UserError(f"{path}: there are no such files")
            yield from files
        else:
            yield path


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    """Its audio files; links to folders are not followed, which may lead in circles."""
    if recursive:
        inside = []
        for root, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside += [Path(root, name) for name in names]
    else:
        inside = list(folder.iterdir())
    files = sorted(filter(is_audio, inside))
    if not files:
        hint = "" if recursive else "; --recursive looks into the folders inside it"
        raise UserError(f"{folder}: holds no audio files{hint}")
    return files


def _held_out(root: Path, clips: ClipList, split: Split) -> ClipList:
    """The deterministic stratified part of the clips that belongs to a split."""
    by_label: dict[int | None, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_label[clip.label].append(clip)
    held_out: set[Clip] = set()
    for label, members in by_label.items():
        if len(members) < 2 and label is not None:
            raise UserError(
                f"{root / clips.classes[label]}: has a single audio file; at least two are needed, "
                "one to train on and one to evaluate on (the split 'all' takes all there are)"
            )
        members.sort(key=lambda clip: hashlib.sha256(os.fsencode(clip.path.name)).digest())
        held_out.update(members[: max(1, round(EVALUATE_SHARE * len(members)))])
    chosen = tuple(clip for clip in clips if (clip in held_out) == (split == "evaluate"))
    return replace(clips, clips=chosen, of=len(clips))
