"""The choice of tiles, with the measuring replaced."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastsep.kernels import interpreted

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter has nothing to tune")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was timed. The device is made up; the last tile to be timed is the fastest."""
    from fastsep.triton import tuning

    timed: list[object] = []

    def milliseconds(job: object) -> float:
        timed.append(job)
        return -len(timed)

    monkeypatch.setenv("FASTSEP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTSEP_TUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU (80 GB)")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "_PACKAGED", tmp_path / "packaged")
    tuning._tables.cache_clear()
    return timed


def test_tiles_are_measured_once_and_kept(
    measured: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fastsep.triton import tiles, tuning
    from fastsep.triton.shared import Size

    candidates = tiles.CANDIDATES["forward", "ieee"]

    def choose(frames: int, arithmetic: str = "ieee") -> tiles.Tile:
        return tuning.choose("forward", Size(64, 128, frames, 128), 2, arithmetic, lambda t: t)

    assert choose(215) == candidates[0]
    assert not measured and not (tmp_path / "cache").exists()

    monkeypatch.setenv("FASTSEP_TUNE", "1")
    assert choose(215) == candidates[-1]
    assert measured == candidates
    assert choose(9) == candidates[-1] and len(measured) == len(candidates)  # frames do not matter
    assert choose(215, "half") == tiles.CANDIDATES["forward", "half"][-1]  # the arithmetic does

    monkeypatch.delenv("FASTSEP_TUNE")
    tuning._tables.cache_clear()  # as another process would
    assert choose(215) == candidates[-1]
    (table,) = (tmp_path / "cache").iterdir()
    assert table.name == "triton-Some-GPU-80-GB-.json"
    assert len(json.loads(table.read_text())) == 2


def test_a_table_of_the_package_is_used_and_the_users_own_wins(
    measured: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fastsep.triton import tiles, tuning
    from fastsep.triton.shared import Size

    monkeypatch.setenv("FASTSEP_TUNE", "1")
    size = Size(64, 128, 215, 128)

    def choose() -> tiles.Tile:
        return tuning.choose("sums", size, 2, "tf32", lambda t: t)

    mine = choose()
    (table,) = (tmp_path / "cache").iterdir()
    entries = json.loads(table.read_text())
    shipped = {layer: {**tile, "warps": 16} for layer, tile in entries.items()}
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged" / table.name).write_text(json.dumps(shipped))
    tuning._tables.cache_clear()
    assert choose() == mine
    table.unlink()
    tuning._tables.cache_clear()
    assert choose() == mine._replace(warps=16)


def test_nothing_is_measured_while_a_graph_is_captured(
    measured: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastsep.triton import tiles, tuning
    from fastsep.triton.shared import Size

    monkeypatch.setenv("FASTSEP_TUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tile = tuning.choose("forward", Size(64, 128, 9, 128), 2, "half", lambda t: t)
    assert tile == tiles.CANDIDATES["forward", "half"][0] and not measured


def test_a_broken_table_and_a_folder_that_cannot_be_written_are_warned_of(
    measured: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fastsep.triton import tiles, tuning
    from fastsep.triton.shared import Size

    def choose() -> tiles.Tile:
        return tuning.choose("forward", Size(64, 128, 9, 128), 2, "ieee", lambda t: t)

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "triton-Some-GPU-80-GB-.json").write_text("{")
    with pytest.warns(UserWarning, match="ignores the table"):
        assert choose() == tiles.CANDIDATES["forward", "ieee"][0]
    monkeypatch.setenv("FASTSEP_TUNE", "1")
    monkeypatch.setenv("FASTSEP_CACHE_DIR", str(tmp_path / "a file"))
    (tmp_path / "a file").touch()
    tuning._tables.cache_clear()
    with pytest.warns(UserWarning, match="cannot keep|ignores"):
        assert choose() == tiles.CANDIDATES["forward", "ieee"][-1]


@pytest.mark.parametrize(
    "switch",
    [
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.set_float32_matmul_precision('high')",
        "",
    ],
)
def test_tf32_is_used_where_pytorch_allows_it(
    run_python: Callable[..., subprocess.CompletedProcess[str]], switch: str
) -> None:
    code = (
        f"import torch\n{switch}\nfrom fastsep.triton.launch import _precision\nprint(_precision())"
    )
    said = run_python(code)
    assert said.stdout.strip() == ("tf32" if switch else "ieee"), said.stderr
