from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asc.data import Clip, read_tau
from asc.task import SCENES

Refused = Callable[..., Any]


def test_reads_every_split(tau: Path) -> None:
    train = read_tau(tau, "train")
    assert train.classes == SCENES
    assert train.labels == (SCENES.index("bus"), SCENES.index("park"))
    assert train.devices == ("a", "s1")
    assert len(train) == 2
    assert train[0] == Clip(tau / "audio" / "bus-oslo-1-1-a.wav", 1, "a")
    assert read_tau(tau, "evaluate").labels == (9,)
    assert list(read_tau(tau, "test")) == [Clip(tau / "audio" / "tram-oslo-3-3-s4.wav", None, "s4")]


def test_device_from_meta_wins_over_the_name(tau: Path) -> None:
    meta = (tau / "meta.csv").read_text().replace("oslo-1\ta\n", "oslo-1\td\n")
    (tau / "meta.csv").write_text(meta)
    assert read_tau(tau, "train").devices == ("d", "s1")


def test_evaluation_set_without_labels_or_meta(
    tmp_path: Path, wav: Callable[..., Path], refused: Refused
) -> None:
    wav(tmp_path / "audio" / "17.wav")
    (tmp_path / "evaluation_setup").mkdir()
    (tmp_path / "evaluation_setup" / "fold1_test.csv").write_text("filename\naudio/17.wav\n")
    assert read_tau(tmp_path, "test").clips == (Clip(tmp_path / "audio" / "17.wav", None, None),)
    for split in ("train", "evaluate"):
        with refused(f"fold1_{split}.csv", "without labels", f"asc predict WEIGHTS {tmp_path}"):
            read_tau(tmp_path, split)


def test_evaluation_set_with_labels_in_meta(tau: Path, refused: Refused) -> None:
    setup = tau / "evaluation_setup"
    for split in ("train", "evaluate"):
        (setup / f"fold1_{split}.csv").unlink()
    evaluate = read_tau(tau, "evaluate")
    assert (evaluate.labels, evaluate.devices) == ((9,), ("s4",))
    assert read_tau(tau, "test").labels == (None,)
    with refused("fold1_train.csv", "no such file"):
        read_tau(tau, "train")
    meta = (tau / "meta.csv").read_text().replace("tram-oslo", "gone-oslo")
    (tau / "meta.csv").write_text(meta)
    with refused("fold1_test.csv, line 2", "unknown scene label ''"):
        read_tau(tau, "evaluate")


def test_byte_order_mark_and_windows_line_ends(tau: Path) -> None:
    path = tau / "evaluation_setup" / "fold1_train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_tau(tau, "train")) == 2


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("filename\tscene_label\naudio/bus-oslo-1-1-a.wav\tbeach\n", ("line 2", "beach")),
        ("filename\tscene_label\naudio/gone.wav\tbus\n", ("line 2", "gone.wav")),
        (
            "filename\tscene_label\n"
            + "audio/bus-oslo-1-1-a.wav\tbus\naudio/park-oslo-2-2-s1.wav\tpark\n"
            + "audio/bus-oslo-1-1-a.wav\tbus\n",
            ("line 4", "line 2"),
        ),
        ("filename\tscene_label\n", ("no clips",)),
        ("", ("filename",)),
        ("filename,scene_label\na,bus\n", ("filename", "tab")),
        ("filename\naudio/bus-oslo-1-1-a.wav\n", ("scene_label",)),
        ("filename\tscene_label\naudio/bus-oslo-1-1-a.wav\n", ("line 2", "scene_label")),
        ("filename\tscene_label\n\tbus\n", ("line 2", "filename")),
    ],
)
def test_bad_list(tau: Path, content: str, parts: tuple[str, ...], refused: Refused) -> None:
    path = tau / "evaluation_setup" / "fold1_train.csv"
    path.write_text(content)
    with refused(path, *parts):
        read_tau(tau, "train")


def test_binary_list(tau: Path, refused: Refused) -> None:
    path = tau / "evaluation_setup" / "fold1_train.csv"
    path.write_bytes(b"filename\tscene_label\n\xff\xfe\x00\tbus\n")
    with refused(path):
        read_tau(tau, "train")


def test_missing_list_and_wrong_folder(tau: Path, refused: Refused) -> None:
    (tau / "evaluation_setup" / "fold1_test.csv").unlink()
    with refused("fold1_test.csv", "no such file"):
        read_tau(tau, "test")
    with refused(tau / "audio", "not a TAU data set"):
        read_tau(tau / "audio", "train")


def test_meta_without_file_names(tau: Path, refused: Refused) -> None:
    (tau / "meta.csv").write_text("file\tscene_label\n")
    with refused("meta.csv", "filename"):
        read_tau(tau, "train")
