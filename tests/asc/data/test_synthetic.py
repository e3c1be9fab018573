from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from asc.data import Clip, open_dataset, read_audio, write_synthetic
from asc.data.synthetic import synthesize
from asc.features import LogMel
from asc.task import DEVICES, SCENES

Refused = Callable[..., Any]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "new" / "scenes"
    write_synthetic(root, clips_per_scene=4, seconds=0.3, seed=1)
    return root


def test_layout(synthetic: Path) -> None:
    train, evaluate = open_dataset(synthetic, "train"), open_dataset(synthetic, "evaluate")
    assert Counter(train.labels) == dict.fromkeys(range(10), 3)
    assert Counter(evaluate.labels) == dict.fromkeys(range(10), 1)
    assert set(train.devices) == set(DEVICES[:6])
    assert set(evaluate.devices) == set(DEVICES)
    assert not {place(clip) for clip in train} & {place(clip) for clip in evaluate}
    test = open_dataset(synthetic, "test")
    assert [clip.path for clip in test] == [clip.path for clip in evaluate]
    assert "SYNTHETIC" in (synthetic / "README.txt").read_text()
    for clip in train:
        scene, *_, device = clip.path.stem.split("-")
        assert clip.label is not None
        assert (scene, device) == (SCENES[clip.label], clip.device)


def test_audio_format(synthetic: Path) -> None:
    for clip in open_dataset(synthetic, "evaluate"):
        info = soundfile.info(clip.path)
        assert (info.samplerate, info.channels, info.frames) == (44_100, 1, 13_230)
        assert (info.format, info.subtype) == ("WAV", "PCM_24")
        waveform = read_audio(clip.path)
        assert 1e-3 < waveform.square().mean().sqrt() < 0.3  # -60 to -10 dB
        assert waveform.abs().max() < 1


def test_deterministic_in_the_seed(synthetic: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "same", clips_per_scene=4, seconds=0.3, seed=1)
    write_synthetic(tmp_path / "other", clips_per_scene=4, seconds=0.3, seed=2)
    files = sorted(p.relative_to(synthetic) for p in synthetic.rglob("*") if p.is_file())
    same = sorted(p.relative_to(tmp_path / "same") for p in (tmp_path / "same").rglob("*.*"))
    assert files == same
    assert all((synthetic / f).read_bytes() == (tmp_path / "same" / f).read_bytes() for f in files)
    other = {p.read_bytes() for p in (tmp_path / "other" / "audio").iterdir()}
    assert not other & {p.read_bytes() for p in (synthetic / "audio").iterdir()}


def test_devices_sound_different() -> None:
    def timbre(device: str) -> torch.Tensor:
        audio = torch.from_numpy(synthesize("park", device, (0, 0, 0), 44_100))
        return LogMel()(audio).mean(dim=(0, 1, 2))

    timbres = [timbre(device) for device in DEVICES]
    for i, one in enumerate(timbres):
        for other in timbres[:i]:
            assert (one - other).std() > 1  # dB, of the same clip


def test_refuses_to_overwrite(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with refused(tmp_path / name):
            write_synthetic(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "full" / "precious").read_text() == "x"


def test_fills_an_empty_folder(tmp_path: Path) -> None:
    inode = tmp_path.stat().st_ino  # the folder may be a mount
    write_synthetic(tmp_path, clips_per_scene=2, seconds=0.1)
    assert len(open_dataset(tmp_path, "train")) == 10
    assert tmp_path.stat().st_ino == inode
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(soundfile, "write", full_disk)
    with refused(tmp_path / "new", "no space"):
        write_synthetic(tmp_path / "new", clips_per_scene=2, seconds=0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"clips_per_scene": 1}, "clips per scene"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, arguments: dict[str, int], word: str, refused: Refused
) -> None:
    with refused(word):
        write_synthetic(tmp_path / "new", **arguments)
    assert list(tmp_path.iterdir()) == []


def place(clip: Clip) -> str:
    return clip.path.stem.split("-")[2]
