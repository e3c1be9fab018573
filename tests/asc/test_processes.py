import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from work import end, report

from asc.errors import UserError
from asc.processes import Place, check_devices, run, shares, take_share, torchrun_place

TESTS = Path(__file__).parents[1]


def is_gone(pid: str) -> bool:
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # of an orphan that nobody has asked for


def pids(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_results_in_order() -> None:
    advanced: list[int] = []
    results = run(report, [(7,), (8,)], advance=advanced.append)
    threads = max(1, torch.get_num_threads() // 2)
    assert results == [(Place(0, 2, 0, 2), 7, threads), (Place(1, 2, 1, 2), 8, threads)]
    assert sorted(advanced) == [7, 8]


@pytest.mark.parametrize(
    ("ways", "error", "message"),
    [
        (("ours", "user"), UserError, "^the clips are gone$"),
        (("wait", "kill"), UserError, "^process 2 of 2 was killed by SIGKILL, perhaps for lack of"),
        (("wait", "ours"), RuntimeError, r"^a mistake\nin process 2 of 2:\n(?s:.*)ZeroDivision"),
        (("wait", "interrupt"), KeyboardInterrupt, None),
    ],
    ids=str,
)
def test_one_cause_is_left_and_nobody_stays(
    ways: tuple[str, ...], error: type[BaseException], message: str | None, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(end, [(tmp_path, how) for how in ways])
    assert all(is_gone(pid) for pid in pids(tmp_path))


def test_what_cannot_be_given_to_processes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the data cannot be given to other processes: .*lambda"):
        run(end, [(tmp_path, "wait"), (tmp_path, lambda: "wait")])
    assert all(is_gone(pid) for pid in pids(tmp_path))


class Huge:
    """What does not fit, in PyTorch's words."""

    def __reduce__(self) -> Any:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Success (0)")


def test_what_does_not_fit_into_shared_memory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit into shared memory.*--shm-size"):
        run(end, [(tmp_path, "wait"), (tmp_path, Huge())])
    assert all(is_gone(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_who_started_them(by: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import signal, sys, pathlib, work; from asc.processes import run\n"
        # Ignored in what a shell runs in the background, as tests may be.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "run(work.end, [(pathlib.Path(sys.argv[1]), 'wait')] * 2)"
    )
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(pids(tmp_path)) == 2)
        parent.send_signal(by)
        _, error = parent.communicate(timeout=60)
    finally:
        parent.kill()
    wait_until(lambda: all(is_gone(pid) for pid in pids(tmp_path)))
    # Whoever handles it says it, once: nothing comes from the processes themselves.
    assert error.count("Traceback") == (by == signal.SIGINT), error


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("size", "count", "unit", "expected"),
    [
        (10, 2, 1, [range(5), range(5, 10)]),
        (10, 3, 4, [range(4), range(4, 8), range(8, 10)]),
        (3, 2, 4, [range(0), range(3)]),
        (0, 2, 1, [range(0), range(0)]),
    ],
)
def test_shares(size: int, count: int, unit: int, expected: list[range]) -> None:
    assert list(shares(size, count, unit)) == expected


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables count only with its mark: clusters set RANK for other purposes."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    values = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert torchrun_place() == Place() and Place().is_first
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert torchrun_place() == Place(5, 8, 1, 4) and not torchrun_place().is_first


@pytest.mark.parametrize(("set_to", "threads"), [(None, 3), ("1", 3), ("2", None)])
def test_torchrun_processes_share_the_cores(
    set_to: str | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_to:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    take_share(Place())
    assert taken == []
    take_share(Place(2, 4, 0, 2))
    assert taken == [threads] * (threads is not None)


def test_check_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_devices(1, "cuda")
    check_devices(99, "cpu")
    with pytest.raises(UserError, match="at least 1, got 0"):
        check_devices(0, "cpu")
    with pytest.raises(UserError, match="2 devices were asked for and PyTorch sees 1 GPU: choose"):
        check_devices(2, "cuda")
