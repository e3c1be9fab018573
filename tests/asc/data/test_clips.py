from pathlib import Path

import pytest

from asc.data import Clip, ClipList, unlabelled
from asc.data.clips import city_from_name, device_from_name, location_from_name, relative_name


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("bus-oslo-1-22-a.wav", "a"),
        ("metro_station-lyon-1-2-s6.flac", "s6"),
        ("bus-oslo-1-22-d.wav", "d"),  # only in the evaluation set
        ("bus-oslo-1-22-S1.wav", None),
        ("tram-lyon-1100-42000-2-s3.wav", "s3"),  # since the edition of 2022
        ("bus-oslo-1-22-x-a.wav", None),
        ("bus-oslo-22-a.wav", None),
        ("a.wav", None),
    ],
)
def test_device_from_name(name: str, device: str | None) -> None:
    assert device_from_name(Path("folder") / name) == device


@pytest.mark.parametrize(
    ("name", "city", "location"),
    [
        ("bus-oslo-1-22-a.wav", "oslo", "oslo-1"),
        ("metro_station-lyon-1100-42000-2-s3.wav", "lyon", "lyon-1100"),  # since 2022
        ("bus-oslo-1-22-S1.wav", None, None),
        ("1-116765-A.ogg", None, None),
    ],
)
def test_place_of_recording(name: str, city: str | None, location: str | None) -> None:
    path = Path("folder") / name
    assert (city_from_name(path), location_from_name(path)) == (city, location)


def test_names_in_a_list() -> None:
    assert relative_name(Path("data/audio/a.wav"), Path("data")) == "audio/a.wav"
    assert relative_name(Path("/elsewhere/a.wav"), Path("data")) == "/elsewhere/a.wav"


def test_columns_of_a_list() -> None:
    clips = ClipList(("x", "y"), (Clip(Path("a"), 1, "s1"), Clip(Path("b"), None, None)))
    assert len(clips) == 2 and clips[1].path == Path("b")
    assert clips.labels == (1, None)
    assert clips.devices == ("s1", None)


def test_unlabelled() -> None:
    paths = [Path("b.wav"), Path("bus-oslo-1-2-s5.wav"), Path("b.wav")]
    clips = unlabelled(paths)
    assert [clip.path for clip in clips] == paths
    assert clips.labels == (None, None, None)
    assert clips.devices == (None, "s5", None)
