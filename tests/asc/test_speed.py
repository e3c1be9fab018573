import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from asc import speed
from asc.checkpoint import save_folded
from asc.model import Cnn6Sep
from asc.speed import KEEP_MEMORY, Speed, compare, main, measure


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_folded(Cnn6Sep(), tmp_path / "folded.pt")
    return tmp_path / "folded.pt"


def test_all_are_measured_and_pytorch_at_its_best(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    seconds = iter([*(3 * [0.0, 9.0] * 3), 0.0, 1.0, 0.0, 7.0, 0.0, 5.0])  # three rounds to warm up
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(seconds))
    found = measure(weights, "cpu", repeats=1)
    assert (found.fused, found.eager, found.layout) == (1, 5, "channels_last")
    assert found.ratio == 5
    for part in ("one 10 s clip, float32", f"{threads} threads", torch.__version__):
        assert part in found.measured


def test_it_is_measured_in_a_process_whose_allocator_keeps_memory(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the fastsep that is imported here, not of one in the current folder."""
    seen: dict[str, Any] = {}
    run = subprocess.run
    for name in ("asc", "fastsep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('of a clone')")
    monkeypatch.chdir(tmp_path)

    def spy(command: list[str], **options: Any) -> Any:
        seen.update(options["env"])
        return run([*command, "--help"], **options)  # the module is there

    monkeypatch.setattr(subprocess, "run", spy)
    with pytest.raises(json.JSONDecodeError):
        compare(weights)
    assert seen.items() >= KEEP_MEMORY.items()


def test_what_one_process_says_the_other_reads(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = Speed(0.01, 0.1, "NCHW", "not measured")
    asked = []
    monkeypatch.setattr(speed, "measure", lambda *given: asked.append(given) or expected)
    monkeypatch.setattr("sys.argv", ["asc.speed", str(weights), "--device", "cuda"])
    main()
    assert asked == [(weights, "cuda")]
    said = capsys.readouterr().out
    assert json.loads(said) == asdict(expected)
    ended = subprocess.CompletedProcess([], 0, stdout=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    assert compare(weights) == expected
