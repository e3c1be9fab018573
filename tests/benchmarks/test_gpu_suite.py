"""The parts of `python -m benchmarks.gpu_suite` that need no GPU."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsep
from benchmarks import gpu_suite, workloads
from benchmarks.gpu import correctness, layers, network, report, timing
from benchmarks.gpu.correctness import Shape
from benchmarks.gpu.results import Case, Results
from benchmarks.gpu.worker import START, cases
from fastsep.kernels import interpreted
from fastsep.testing import gradient_bounds, random_walk, share_of_bound

ROOT = Path(__file__).parents[2]
SHAPES = [Shape(1, 10, 9, 20), Shape(24, 10, 8, 13)]
ODD = [Shape(20, 12, 9, 16), Shape(3, 5, 1, 7, 1, 1), Shape(2, 4, 6, 1, 3, 1),
       Shape(3, 5, 4, 4, batch=0)]  # fmt: skip
FRAMES = 16 if interpreted() else 32  # of which the network leaves one, or two
CHECKS = correctness.cases("cpu", SHAPES, ODD, frames=FRAMES, compiler="aot_eager")


def _check(case: Case) -> Any:
    """To bfloat16 the interpreter truncates, which these bounds do not allow for; of TF32 it knows
    nothing, so the slow stack is the IEEE one again."""
    truncated = case.name == "autocast" or (
        case.name.endswith("bf16") and case.name.startswith(("operator", "block"))
    )
    elsewhere = truncated or case.name == "stack under masks, TF32"
    return pytest.param(case, id=case.name, marks=() if elsewhere else pytest.mark.interpreted)


@pytest.mark.parametrize("check", [_check(case) for case in CHECKS])
def test_the_checks_pass(check: Any) -> None:
    assert 0 <= check.run()["worst"] <= 1


# Mistakes a kernel could make, and a check that has to notice.
def _last_row_of_input(*a: Any, **k: Any) -> Tensor:
    x = a[0].clone()
    x[:, :, -1] = 0
    return SEP_CONV2D(x, *a[1:], **k)


MISTAKES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "a row missing": ("operator, (24", _last_row_of_input),
    "bfloat16 inside": ("operator, (24", lambda *a, **k: SEP_CONV2D(
        *(t.bfloat16() for t in a), **k).float()),
    "NaN": ("operator, (24", lambda *a, **k: SEP_CONV2D(*a, **k) * torch.nan),
    "a shape": ("operator, (24", lambda *a, **k: SEP_CONV2D(*a, **k)[..., 1:]),
    "a dtype": ("autocast", lambda *a, **k: SEP_CONV2D(*a, **k).float()),
    "noise": ("same bits", lambda *a, **k: SEP_CONV2D(*a, **k) * (1 + 1e-6 * torch.rand(()))),
}  # fmt: skip
SEP_CONV2D = fastsep.sep_conv2d


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, wrong = MISTAKES[mistake]
    monkeypatch.setattr(fastsep, "sep_conv2d", wrong)
    check = next(case for case in CHECKS if case.name.startswith(start))
    with pytest.raises(AssertionError):
        check.run()


def test_bounds_of_gradients_notice_a_missing_row() -> None:
    """Though sums run over all positions of a large map."""
    shape = Shape(1, 4, 431, 64)
    x, weights = correctness.draw("cpu", shape, torch.float32)
    _, grad, gradients = correctness._run(x, weights, shape, None)
    p, a, b, bias = weights
    missing = grad.clone()
    missing[:, :, 200] = 0
    right, wrong = (
        gradient_bounds(g, x, (p, a, b, bias, shape.dilation, None), growth=random_walk)[1]
        for g in (grad, missing)
    )
    share_of_bound("pointwise", gradients[1], *right)
    with pytest.raises(AssertionError, match="more than rounding"):
        share_of_bound("pointwise", gradients[1], *wrong)


def test_the_eager_variants_compute_the_same() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 32, 256)
    model = workloads.Cnn6Sep(dropout=0).train()
    plain = network._variant(model, layers.NCHW)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)
    folded = model.folded()
    stripes = torch.tensor([[[0, 2, 9]], [[1, 30, 90]]])
    last = network._variant(folded, layers.CHANNELS_LAST)
    maps: list[Tensor] = []
    last.blocks[2].register_forward_hook(lambda *a: maps.append(a[2]))  # type: ignore[index]
    with torch.no_grad():
        torch.testing.assert_close(last(x, stripes), folded(x, stripes), rtol=1e-4, atol=1e-5)
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    assert network._variant(folded, layers.FASTSEP) is folded


def test_inputs_rotate_past_the_cache() -> None:
    inputs = timing.rotated(lambda: (torch.empty(100), torch.empty(25)), l2_bytes=1000)
    assert len(inputs) == 4  # 500 bytes each: 2000 in all
    assert len({pair[0].data_ptr() for pair in inputs}) == 4


def test_switches_are_put_back() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def switches() -> tuple[object, ...]:
        return torch.get_float32_matmul_precision(), matmul.allow_tf32, cudnn.allow_tf32

    before = switches()
    for precision in timing.PRECISIONS:
        with pytest.raises(KeyError), timing.settings(precision):
            assert matmul.allow_tf32 == cudnn.allow_tf32 == (precision == "TF32")
            raise KeyError
        assert switches() == before


def test_a_system_that_computes_something_else_is_no_peer() -> None:
    expected = [torch.tensor([1.0, -2.0])]
    error = timing.assert_same([torch.tensor([1.0, -2.01, 9.0])], expected, 0.01)
    assert error == pytest.approx(0.005)
    for wrong in ([1.0, -2.1, 0.0], [1.0, torch.nan]):
        with pytest.raises(AssertionError, match="off by"):
            timing.assert_same([torch.tensor(wrong)], expected, 0.01)


def test_floors_are_those_of_the_network() -> None:
    assert network.network_bytes(4) == pytest.approx(23e6, rel=0.03)
    flop = sum(layers.clip_flop("block", layer) for layer in workloads.LAYERS.values())
    assert flop == workloads.network_flop(1)


def test_case_names_are_unique() -> None:
    for spec in gpu_suite.SECTIONS.values():
        names = [case.name for case in cases(spec)]
        assert len(set(names)) == len(names) > 0


# The suite around sections that end well, raise, kill the process, or take long.

FAKE = """
import os, time
from benchmarks.gpu.results import Case
def fails(): raise ValueError("no luck")
def logged(name):
    def run():
        print("ran", name)
        return {"value": 1.0}
    return Case(name, run)
def mixed():
    return [Case("late", lambda: {"tune": os.environ.get("FASTSEP_TUNE"),
                                  "cache": os.environ["FASTSEP_CACHE_DIR"]}, rank=1),
            Case("raises", fails), Case("peer raises", fails, peer=True),
            Case("NaN", lambda: {"value": float("nan")}), Case("dies", lambda: os._exit(7)),
            logged("after")]
def slow(): return [logged("quick"), Case("slow", lambda: time.sleep(60)), logged("never")]
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_sections.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_failures_stop_nothing_and_finished_cases_are_kept(fakes: Path) -> None:
    results = Results(fakes)
    sections = ["mixed=fake_sections:mixed", "absent=fake_sections:nothing"]
    gpu_suite.run_sections(results, sections, time.time() + 60, tune=True)
    rows = json.loads(results.path.read_text())["sections"]
    assert list(rows["mixed"]) == ["raises", "peer raises", "NaN", "dies", "after", "late"]
    assert rows["mixed"]["after"]["value"] == 1
    assert rows["mixed"]["late"]["tune"] == "1"
    assert rows["mixed"]["late"]["cache"] == str(fakes / "tuning")
    assert "ValueError: no luck" in rows["mixed"]["raises"]["error"]
    assert "code 7" in rows["mixed"]["dies"]["error"]
    assert "nothing" in rows["absent"][START]["error"]
    failed = {(section, name) for section, name, _ in results.failures()}
    assert failed == {("mixed", name) for name in ("raises", "peer raises", "NaN", "dies")} | {
        ("absent", START)
    }
    assert gpu_suite.exit_code(results) == 1
    results.rows = {"mixed": {"peer raises": rows["mixed"]["peer raises"]}}
    assert gpu_suite.exit_code(results) == 0

    results.rows = rows
    results.forget_errors(["mixed"])
    assert list(Results(fakes).rows["mixed"]) == ["after", "late"]
    assert list(Results(fakes).rows["absent"]) == [START]  # was not asked for again


def test_shards_share_the_cases(fakes: Path) -> None:
    results, sections = Results(fakes), ["mixed=fake_sections:mixed"]
    results.finish("mixed", "after", {"value": 2.0})  # of an earlier run
    gpu_suite.run_shards(results, sections, time.time() + 60, True, jobs=4)
    rows = Results(fakes).rows["mixed"]
    assert set(rows) == {"raises", "peer raises", "NaN", "dies", "after", "late"}
    assert rows["after"] == {"value": 2.0} and rows["late"]["tune"] == "1"
    assert rows["late"]["cache"] != str(fakes / "tuning")
    assert {path.name for path in fakes.iterdir() if path.is_dir()} <= {"__pycache__"}


def test_the_budget_ends_a_case_and_says_what_is_left_out(
    fakes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results, sections = Results(fakes), ["slow=fake_sections:slow"]
    results.finish("slow", "quick", {"value": 2.00001})  # of an earlier run
    begin = time.time()
    gpu_suite.run_sections(results, sections, begin + 5, tune=False)
    assert time.time() - begin < 15
    assert results.rows["slow"] == {"quick": {"value": 2.0}} and "ran" not in capfd.readouterr().out
    assert gpu_suite.unfinished(results, sections) == ["slow: slow", "slow: never"]
    assert not results.failures() and Results(fakes).running is None


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", tmp_path / "out"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "no" in ended.stderr and "CUDA device" in ended.stderr
    assert not (tmp_path / "out").exists()


def _row(subject: str, system: str, ms: float, precision: str = "IEEE", peak: int = 0) -> Any:
    return {"subject": subject, "system": system, "batch": 256, "precision": precision, "ms": ms,
            "flop": 256 * 848e6, "bytes": 256 * 23.5e6, "peak_bytes": peak}  # fmt: skip


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    results = Results(tmp_path)
    results.rows = {
        "machine": {"copy bandwidth": {"GB/s": 4000.0}, "matrix rate, IEEE": {"TFLOP/s": 50.0}},
        "network": {
            "a": _row("network", "fastsep", 5.12),
            "b": _row("network", "eager, NCHW", 51.2),
            "c": _row("network", "eager, channels_last", 40.96),
            "d": _row("network", "torch.compile, max-autotune", 10.24),
            "e": {"error": "Traceback\nRuntimeError: out of memory", "peer": True},
        },
        "operator": {
            "a": _row("operator, block 2", "fastsep", 1.0, peak=40),
            "b": _row("operator, block 2", "eager, NCHW", 5.0, peak=100),
            "c": _row("operator, block 2", "eager, channels_last", 6.0, peak=80),
        },
    }
    report.write_report(results, ["network: z"])
    kept = json.loads(results.path.read_text())
    ours = kept["sections"]["network"]["a"]
    assert ours["us_per_clip"] == pytest.approx(20)
    assert ours["share_of_copy"] == 0.2938  # 23.5 MB of 4000 GB/s in 20 us
    assert ours["share_of_math"] == 0.848
    goals = {goal["name"]: (goal["value"], goal["met"]) for goal in kept["goals"]}
    name = "network, batch 256, IEEE: "
    assert goals[name + "us a clip"] == (pytest.approx(20), True)
    assert goals[name + "times eager's best"] == (pytest.approx(8), True)
    assert goals[name + "times torch.compile"] == (pytest.approx(2), False)
    assert goals["network, batch 256, TF32: us a clip"] == (None, None)
    name = "operator, block 2, fwd + bwd, batch 256, IEEE: "
    assert goals[name + "times eager's best"] == (5, True)
    assert goals[name + "share of eager's memory"] == (0.5, False)
    assert kept["left_out"] == ["network: z"]
    assert (tmp_path / "gpu_suite.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "RuntimeError: out of memory" in printed and "(peer)" in printed
    assert printed.index("goals") > printed.index("sections")
    report.write_report(results, [])  # shares are computed afresh, nothing else changes
    assert json.loads(results.path.read_text())["goals"] == kept["goals"]
