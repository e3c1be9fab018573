import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asc.data import cache
from asc.data.cache import Rows, filled

Refused = Callable[..., Any]
N, ROW = 40, (3, 64)
MARKS = np.arange(1, N + 1, dtype=np.uint64)


def row(index: int) -> Rows:
    return np.full(ROW, index + 0.5, dtype=np.float32)


EXPECTED = np.stack([row(i) for i in range(N)])


def counting(computed: list[int], stop_at: int | None = None) -> Callable[[int], Rows]:
    def compute(index: int) -> Rows:
        if index == stop_at:
            raise KeyboardInterrupt
        computed.append(index)
        return row(index)

    return compute


def test_it_is_a_file_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.npy"
    assert np.array_equal(filled(path, MARKS, ROW, row, "rows"), EXPECTED)
    assert np.array_equal(np.load(path), EXPECTED)
    assert os.listdir(path.parent) == ["rows.npy"]
    assert np.array_equal(filled(path, MARKS, ROW, counting([], 0), "rows"), EXPECTED)


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    computed: list[int] = []
    path = tmp_path / "rows.npy"
    with pytest.raises(KeyboardInterrupt):
        filled(path, MARKS, ROW, counting(computed, 25), "rows")
    assert not path.exists()
    assert set(range(25)) <= set(computed)
    computed.clear()
    assert np.array_equal(filled(path, MARKS, ROW, counting(computed), "rows"), EXPECTED)
    assert not set(range(25)) & set(computed)
    assert os.listdir(tmp_path) == ["rows.npy"]


def test_rows_under_other_marks_are_computed_again(tmp_path: Path) -> None:
    """And whoever reads the older file goes on reading that."""
    computed: list[int] = []
    path = tmp_path / "rows.npy"
    older = filled(path, MARKS, ROW, row, "rows")
    marks = MARKS.copy()
    marks[[3, 30]] = 99
    newer = filled(path, marks, ROW, lambda i: computed.append(i) or -row(i), "rows")
    assert sorted(computed) == [3, 30]
    changed = EXPECTED.copy()
    changed[[3, 30]] *= -1
    assert np.array_equal(newer, changed)
    assert np.array_equal(older, EXPECTED)


def test_of_a_half_made_file_nothing_is_trusted_but_what_is_marked(tmp_path: Path) -> None:
    path, part = tmp_path / "rows.npy", tmp_path / "rows.part"
    with pytest.raises(KeyboardInterrupt):
        filled(path, MARKS, ROW, counting([], 25), "rows")
    whole = part.read_bytes()
    for content in (b"", whole[:1000], whole[:-8], b"x" * len(whole), whole + b"more"):
        part.write_bytes(content)
        assert np.array_equal(filled(path, MARKS, ROW, row, "rows"), EXPECTED)
        path.unlink()


def test_marks_follow_the_rows_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may lose what was not synchronised, so no mark may be written before."""
    events: list[str] = []
    layout = cache._Layout(N, ROW)
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def noted(descriptor: int, data: memoryview, at: int) -> int:
        events.append("marks" if at >= layout.marks_start else "row")
        return pwrite(descriptor, data, at)

    def synchronised(descriptor: int) -> None:
        events.append("sync")
        fdatasync(descriptor)

    monkeypatch.setattr(os, "pwrite", noted)
    monkeypatch.setattr(os, "fdatasync", synchronised)
    monkeypatch.setattr(cache, "KEEP_EVERY", 0.0)
    filled(tmp_path / "rows.npy", MARKS, ROW, row, "rows")
    assert events[:2] == ["marks", "row"]  # none as yet, and the header
    assert events.count("row") == N + 1
    kept = [i for i, event in enumerate(events) if event == "marks"][1:]
    assert len(kept) > N / 2
    assert all("sync" in events[before:now] for before, now in pairwise(kept))


def test_there_is_room_or_nothing_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    computed: list[int] = []
    free = SimpleNamespace(free=N * 4 * 3 * 64 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with refused(tmp_path, "rows need", "free"):
        filled(tmp_path / "rows.npy", MARKS, ROW, counting(computed), "rows")
    assert computed == [] and os.listdir(tmp_path) == []
    free.free = 2 * N * 4 * 3 * 64
    filled(tmp_path / "rows.npy", MARKS, ROW, counting(computed), "rows")


def test_writes_that_are_cut_short_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:100], at))
    assert np.array_equal(filled(tmp_path / "rows.npy", MARKS, ROW, row, "rows"), EXPECTED)


def test_processes_that_want_the_same_share_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here threads, whose locks on the file exclude each other too."""
    computed: list[int] = []
    path = tmp_path / "rows.npy"

    def slowly(index: int) -> Rows:
        time.sleep(0.005)
        return counting(computed)(index)

    found: list[Rows] = []
    threads = [
        threading.Thread(target=lambda: found.append(filled(path, MARKS, ROW, slowly, "rows")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed) == list(range(N))
    assert all(np.array_equal(rows, EXPECTED) for rows in found) and len(found) == 3
    assert os.listdir(tmp_path) == ["rows.npy"]
    assert "asc: waiting for a process that makes the rows" in capsys.readouterr().err


def test_a_complete_file_can_be_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.npy"
    filled(path, MARKS, ROW, row, "rows")
    monkeypatch.setattr(cache, "make_folder", None)
    monkeypatch.setattr(fcntl, "flock", None)
    assert np.array_equal(filled(path, MARKS, ROW, row, "rows"), EXPECTED)


def _build(path: Path, started: Any) -> None:
    def slowly(index: int) -> Rows:
        started.set()
        time.sleep(0.02)
        return row(index)

    cache.KEEP_EVERY = 0.05
    filled(path, MARKS, ROW, slowly, "rows")


def test_killed_builds_leave_nothing_that_is_wrong(tmp_path: Path) -> None:
    context = get_context("fork")
    path = tmp_path / "rows.npy"
    for seconds in (0.0, 0.1, 0.15):
        started = context.Event()
        process = context.Process(target=_build, args=(path, started))
        process.start()
        assert started.wait(60)
        time.sleep(seconds)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not path.exists()
    computed: list[int] = []
    assert np.array_equal(filled(path, MARKS, ROW, counting(computed), "rows"), EXPECTED)
    assert len(computed) < N
