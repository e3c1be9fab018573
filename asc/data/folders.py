"""Reader of data sets kept as one folder of audio files per class."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from asc.data.clips import Clip, ClipList, device_from_name
from asc.errors import UserError, note

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf"}
)


def read_folders(root: Path, classes: Sequence[str] | None = None) -> ClipList:
    """Reads `root/<class>/<audio files>`.

    Files that are not audio (by suffix), folders inside a class folder and audio beside the class
    folders are skipped, which is noted (`asc.errors.note`); what is hidden is, without a word. The
    device is taken from names that follow TAU's pattern.

    Args:
        root: the folder.
        classes: the classes in label order, of which some folders may be missing; None takes the
            folder names in alphabetical order (which for the ten TAU scenes is their own order).

    Raises:
        UserError: no such folder, no class folders, a folder that is not one of `classes`, a
            class without audio.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UserError(f"{root}: has no subfolders, expected one folder of audio files per class")
    names = tuple(classes) if classes is not None else tuple(map(_class_name, folders))
    clips: list[Clip] = []
    skipped = Counter("audio beside the class folders" for p in root.iterdir() if is_audio(p))
    for folder in folders:
        if _class_name(folder) not in names:
            raise UserError(f"{folder}: not one of the classes {', '.join(names)}")
        label = names.index(_class_name(folder))
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        paths = sorted(filter(is_audio, inside))
        skipped.update(_why_skipped(path) for path in inside if not is_audio(path))
        if not paths:
            raise UserError(f"{folder}: holds no audio files{_listed(skipped)}")
        clips += [Clip(path, label, device_from_name(path)) for path in paths]
    if skipped:
        note(f"{root}: {len(clips)} clips{_listed(skipped)}")
    if len(names) == 1:
        note(f"{root}: has a single class, '{names[0]}', and nothing to tell it from")
    return ClipList(names, tuple(clips))


def _class_name(folder: Path) -> str:
    """A folder's name as UTF-8, whatever the locale: a class keeps its name on other machines."""
    return os.fsencode(folder.name).decode(errors="surrogateescape")


def _why_skipped(path: Path) -> str:
    if path.is_dir():
        return "folders inside a class folder"
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return "links to nothing, or devices"
    return f"files {path.suffix.lower()}" if path.suffix else "files without a suffix"


def _listed(skipped: Counter[str]) -> str:
    found = ", ".join(f"{why} ({count})" for why, count in sorted(skipped.items()))
    return f"; not read: {found}" if found else ""


def is_audio(path: Path) -> bool:
    """Whether a path is a file with a suffix of audio, and not hidden."""
    hidden = path.name.startswith(".")
    return path.suffix.lower() in AUDIO_SUFFIXES and not hidden and path.is_file()
