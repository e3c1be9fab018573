"""Reader of data sets kept as one folder of audio files per class."""

from collections.abc import Sequence
from pathlib import Path

from asc.data.clips import Clip, ClipList, device_from_name
from asc.errors import UserError

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf"}
)


def read_folders(root: Path, classes: Sequence[str] | None = None) -> ClipList:
    """Reads `root/<class>/<audio files>`.

    Hidden files and folders and files that are not audio (by suffix) are skipped; folders inside a
    class folder are not searched. The device is taken from names that follow TAU's pattern.

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
    names = tuple(classes) if classes is not None else tuple(folder.name for folder in folders)
    clips: list[Clip] = []
    for folder in folders:
        if folder.name not in names:
            raise UserError(f"{folder}: not one of the classes {', '.join(names)}")
        label = names.index(folder.name)
        paths = sorted(p for p in folder.iterdir() if _is_audio(p))
        if not paths:
            raise UserError(f"{folder}: holds no audio files")
        clips += [Clip(path, label, device_from_name(path)) for path in paths]
    return ClipList(names, tuple(clips))


def _is_audio(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in AUDIO_SUFFIXES and not hidden and path.is_file()
