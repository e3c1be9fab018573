"""What a clip is, and a list of them."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asc.errors import UserError

# scene-city-location-segment-device, since the edition of 2022 segment-part-device; evaluation sets
# have devices beyond those of DEVICES.
_TAU_NAME = re.compile(
    r"[^-]+-(?P<city>[^-]+)-(?P<location>[^-]+)-[^-]+(?:-\d+)?-(?P<device>[a-z]|s\d+)"
)


@dataclass(frozen=True)
class Clip:
    """One audio file; label indexes the classes of its list, None where it is not known."""

    path: Path
    label: int | None
    device: str | None

    def state(self) -> tuple[bytes, int, int]:
        """The file's absolute path, its size, and when it was changed (ns).

        Raises:
            UserError: there is no such file any more.
        """
        path = self.path.absolute()
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        return os.fsencode(path), stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True)
class ClipList:
    """A sequence of clips and the names of their classes, in label order.

    of: how many there are where these are a part that was chosen for the user.
    """

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    of: int | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    def __add__(self, other: "ClipList") -> "ClipList":
        """Both, of the same classes."""
        return ClipList(self.classes, self.clips + other.clips)

    @property
    def labels(self) -> tuple[int | None, ...]:
        """Every clip's label, in order."""
        return tuple(clip.label for clip in self.clips)

    @property
    def devices(self) -> tuple[str | None, ...]:
        """Every clip's device, in order."""
        return tuple(clip.device for clip in self.clips)


def unlabelled(paths: Sequence[Path]) -> ClipList:
    """Audio files of which nobody has said what they are."""
    return ClipList((), tuple(Clip(path, None, device_from_name(path)) for path in paths))


def relative_name(path: Path, root: Path) -> str:
    """A clip's name as the lists of its data set have it, wherever that lies."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def device_from_name(path: Path) -> str | None:
    """The device of a file named scene-city-location-segment[-part]-device.*, else None."""
    match = _TAU_NAME.fullmatch(path.stem)
    return match["device"] if match else None


def city_from_name(path: Path) -> str | None:
    """The city, likewise."""
    match = _TAU_NAME.fullmatch(path.stem)
    return match["city"] if match else None


def location_from_name(path: Path) -> str | None:
    """The place of recording, likewise: city-location, the `identifier` of TAU's meta.csv.

    Clips of one location were recorded there by several devices at once, or one after the other.
    """
    match = _TAU_NAME.fullmatch(path.stem)
    return f"{match['city']}-{match['location']}" if match else None
