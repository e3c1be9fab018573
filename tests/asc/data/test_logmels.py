import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asc.data import Clip, ClipList, LogMelDataset, choose_cache, load_clip
from asc.data import logmels as logmels_module
from asc.features import LogMel

Refused = Callable[..., Any]


@pytest.fixture
def clips(tmp_path: Path, wav: Callable[..., Path]) -> ClipList:
    folder = tmp_path / "audio"
    paths = [wav(folder / f"{hertz}.wav", hertz) for hertz in (300, 2000)]
    return ClipList(("low", "high"), (Clip(paths[0], 0, None), Clip(paths[1], None, None)))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The clips whose log-mels were computed, in order."""
    paths: list[Path] = []

    def load_and_note(path: Path) -> torch.Tensor:
        paths.append(path)
        return load_clip(path)

    monkeypatch.setattr(logmels_module, "load_clip", load_and_note)
    return paths


def test_items(tmp_path: Path, clips: ClipList) -> None:
    expected = LogMel()(load_clip(clips[1].path))[0]
    for cache in (None, tmp_path / "cache"):
        logmels = LogMelDataset(clips, cache)
        assert len(logmels) == 2
        logmel, label = logmels[1]
        assert logmel.shape == (1, 431, 256)
        assert torch.equal(logmel, expected)
        assert label == -1
        assert logmels[0][1] == 0
        logmel.zero_()  # the caller's own copy
        assert torch.equal(logmels[1][0], expected)


def test_cached_once(tmp_path: Path, clips: ClipList, computed: list[Path]) -> None:
    first = LogMelDataset(clips, tmp_path / "cache")
    second = LogMelDataset(clips, tmp_path / "cache")
    assert len(computed) == 2
    assert torch.equal(first[0][0], second[0][0])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_changed_audio_is_computed_again(
    tmp_path: Path, clips: ClipList, computed: list[Path], wav: Callable[..., Path]
) -> None:
    cache = tmp_path / "cache"
    before = LogMelDataset(clips, cache)[0][0]
    wav(clips[0].path, 5000)  # same name, same size
    os.utime(clips[0].path, ns=(0, clips[0].path.stat().st_mtime_ns + 1))
    after = LogMelDataset(clips, cache)[0][0]
    assert computed[2:] == [clips[0].path]  # the other one is kept
    assert not torch.equal(before, after)
    assert len(list(cache.iterdir())) == 1  # the stale one is gone


def test_changed_settings(
    tmp_path: Path,
    clips: ClipList,
    computed: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    LogMelDataset(clips, tmp_path / "cache")
    monkeypatch.setattr(logmels_module, "_SETTINGS", ("other",))
    LogMelDataset(clips, tmp_path / "cache")
    assert len(computed) == 4


def test_other_lists_have_their_own_cache(
    tmp_path: Path, clips: ClipList, computed: list[Path]
) -> None:
    reversed_clips = ClipList(clips.classes, clips.clips[::-1])
    LogMelDataset(clips, tmp_path / "cache")
    LogMelDataset(reversed_clips, tmp_path / "cache")
    LogMelDataset(clips, tmp_path / "cache")
    assert len(computed) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "header", "shape"])
def test_damaged_cache(tmp_path: Path, clips: ClipList, computed: list[Path], damage: str) -> None:
    expected = LogMelDataset(clips, tmp_path / "cache")[1][0]
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": content[:-4],
            "garbage": b"garbage" * 100,
            "header": content[:20] + b"(" * 20 + content[40:],
            "shape": content.replace(b"(2, 431, 256)", b"(1, 431, 256)"),
        }[damage]
    )
    assert torch.equal(LogMelDataset(clips, tmp_path / "cache")[1][0], expected)
    assert len(computed) == 4


def test_a_bad_clip_costs_no_more_than_itself(
    tmp_path: Path,
    clips: ClipList,
    computed: list[Path],
    wav: Callable[..., Path],
    refused: Refused,
) -> None:
    clips[1].path.write_bytes(b"not audio")
    with refused(clips[1].path):
        LogMelDataset(clips, tmp_path / "cache")
    clips[1].path.unlink()
    with refused(clips[1].path):
        LogMelDataset(clips, tmp_path / "cache")
    computed.clear()
    wav(clips[1].path, 700)
    logmels = LogMelDataset(clips, tmp_path / "cache")
    assert computed == [clips[1].path]
    for i in range(2):
        assert torch.equal(logmels[i][0], LogMel()(load_clip(clips[i].path))[0])


@pytest.mark.parametrize("other", ["device", "torch"])
def test_what_was_computed_elsewhere_is_computed_again(
    other: str,
    tmp_path: Path,
    clips: ClipList,
    computed: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache has the bits that computing here has."""
    if other == "torch":
        older = (*logmels_module._SETTINGS[:-1], "1.0")
        monkeypatch.setattr(logmels_module, "_SETTINGS", older)
    else:
        mark = logmels_module._identity
        monkeypatch.setattr(logmels_module, "_identity", lambda *a: mark(*a[:2], "cuda"))
    LogMelDataset(clips, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(logmels_module, "load_clip", lambda p: computed.append(p) or load_clip(p))
    LogMelDataset(clips, tmp_path)
    assert len(computed) == 4


def test_cache_that_cannot_be_written(tmp_path: Path, clips: ClipList, refused: Refused) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with refused(blocked):
        LogMelDataset(clips, blocked)
    assert blocked.read_text() == "x"


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, clips: ClipList, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def full_disk(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full_disk)
    with refused(tmp_path / "cache", "No space left", "--cache FOLDER"):
        LogMelDataset(clips, tmp_path / "cache")
    monkeypatch.undo()
    logmels = LogMelDataset(clips, tmp_path / "cache")
    assert torch.equal(logmels[1][0], LogMel()(load_clip(clips[1].path))[0])


def test_batches_are_the_items(tmp_path: Path, clips: ClipList) -> None:
    for cache in (None, tmp_path / "cache"):
        logmels = LogMelDataset(clips, cache)
        batch, labels = logmels.__getitems__([1, 0, 1])
        assert labels.tolist() == [-1, 0, -1]
        assert torch.equal(batch, torch.stack([logmels[i][0] for i in (1, 0, 1)]))
        batch.zero_()  # the caller's own copy
        assert logmels[0][0].any() and logmels[1][0].any()


def test_what_is_written_into_the_map_stays_out_of_the_file(
    tmp_path: Path, clips: ClipList
) -> None:
    logmels = LogMelDataset(clips, tmp_path)
    expected = logmels[0][0]
    logmels._logmels.zero_()
    assert torch.equal(LogMelDataset(clips, tmp_path)[0][0], expected)


def test_much_is_kept_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The TAU split is 13 962 clips to train on and 2 970 to score."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choose_cache(2265) is None and choose_cache(2265, tmp_path / "x") == tmp_path / "x"
    assert capsys.readouterr().err == ""
    assert choose_cache(2266) == tmp_path / "asc"
    assert choose_cache(13_962 + 2970) == tmp_path / "asc"
    said = capsys.readouterr().err
    assert f"16932 clips, 7.5 GB, are kept in {tmp_path / 'asc'}" in said
    assert choose_cache(13_962, tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert choose_cache(2266) == tmp_path / "home" / ".cache" / "asc"


def test_pickle_carries_the_path_not_the_data(tmp_path: Path, clips: ClipList) -> None:
    logmels = LogMelDataset(clips, tmp_path / "cache")
    pickled = pickle.dumps(logmels)
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled)[1][0], logmels[1][0])
    in_memory = pickle.loads(pickle.dumps(LogMelDataset(clips, None)))
    assert torch.equal(in_memory[1][0], logmels[1][0])


def test_memory_is_named_where_it_is_much(
    clips: ClipList,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    LogMelDataset(clips)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(logmels_module, "_MUCH", 2 * 431 * 256 * 4)
    LogMelDataset(clips, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    LogMelDataset(clips)
    said = capsys.readouterr().err
    assert said.startswith("asc: the log-mels of 2 clips take ") and "--cache" in said
