from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from asc.data import Clip, ClipList
from asc.report.predictions import read_predictions, write_predictions

Refused = Callable[..., AbstractContextManager[None]]

CLASSES = ("bus", 'a "tram", or\nnot')
ROOT = Path("data")
P = torch.tensor([[0.1, 0.9], [2 / 3, 1 / 3], [1.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    names = ("audio/bus-oslo-1-22-s5.wav", 'x,"<y>\n.wav', "caf\udce9.wav")
    labels = (0, 1, None)
    clips = tuple(
        Clip(ROOT / name, label, "s5" if "oslo" in name else None)
        for name, label in zip(names, labels, strict=True)
    )
    path = tmp_path / "predictions.csv"
    write_predictions(path, ClipList(CLASSES, clips), ROOT, CLASSES, P)
    return path


def test_every_clip_and_every_bit_is_read_back(written: Path) -> None:
    for path in (written, written.parent):  # the file or its folder
        found = read_predictions(path)
        assert found.classes == CLASSES
        names = ("audio/bus-oslo-1-22-s5.wav", 'x,"<y>\n.wav', "caf\ufffd.wav")
        assert found.filenames == names
        assert found.labels == (0, 1, None)
        assert found.devices == ("s5", None, None)
        assert found.cities == ("oslo", None, None)
        assert found.probabilities.tolist() == P.tolist()


def test_columns_by_name(written: Path) -> None:
    """As other programs see them."""
    head, first = written.read_text().split("\n", 2)[::2][0], written.read_text()
    assert head.startswith("filename,scene_label,device,city,predicted,bus,")
    assert 'audio/bus-oslo-1-22-s5.wav,bus,s5,oslo,"a ""tram"", or\nnot",0.1,0.9\n' in first
    assert "caf\ufffd.wav,,,,bus,1.0,0.0\n" in first


LINE = "x.wav,bus,,,tram,0.25,0.75"
HEAD = "filename,scene_label,device,city,predicted,bus,tram"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "columns filename, scene_label"),
        ("filename\tscene_label\nx\tbus\n", "columns filename, scene_label"),
        ("filename,scene_label,device,city,predicted\n", "one for each class"),
        (f"{HEAD},bus\n", "names a class twice"),
        (HEAD, "no clips"),
        (f"{HEAD}\n{LINE},1\n", "line 2: has 8 cells, expected 7"),
        (f"{HEAD}\n{LINE}\n{LINE}\n", "line 3: 'x.wav' is already on line 2"),
        (f"{HEAD}\n{LINE.replace('bus', 'car')}\n", "line 2: scene_label 'car'"),
        (f"{HEAD}\n{LINE.replace('tram', '')}\n", "line 2: predicted ''"),
        (f"{HEAD}\n{LINE.replace('tram', 'bus')}\n", "'bus' is not its most probable class"),
        (f"{HEAD}\n{LINE.replace('0.25', 'x')}\n", "line 2: could not convert string to float"),
        (f"{HEAD}\n{LINE.replace('0.25', 'nan')}\n", "line 2: its probabilities"),
        (f"{HEAD}\n{LINE.replace('0.25', '-0.25')}\n", "line 2: its probabilities"),
        (f"{HEAD}\n{LINE.replace('0.25', '0.5')}\n", "line 2: its probabilities"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    text: str, part: str, tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with refused(path, part):
        read_predictions(path)


def test_files_that_are_none(tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path / "predictions.csv", "no such file", "--out"):
        read_predictions(tmp_path)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with refused("x.csv", "cannot be read as a table"):
        read_predictions(tmp_path / "x.csv")
