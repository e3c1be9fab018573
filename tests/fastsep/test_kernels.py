"""What can run here, which one a call uses, and the table of operators."""

import copy
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastsep
from fastsep import SepConv2d, kernels
from fastsep.kernels import KERNELS, gpu_kernels


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_operator_is_in_the_table() -> None:
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas()}
    assert {f"fastsep::{name}" for name in KERNELS} == {
        name for name in schemas if name.startswith("fastsep::")
    }


@pytest.mark.parametrize("name", KERNELS)
def test_the_table_says_which_backends_have_an_operator(cpu_kernels: None, name: str) -> None:
    of_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastsep::{name}", "CPU")
    assert of_cpu == ("cpu" in KERNELS[name])
    assert hasattr(importlib.import_module("fastsep.cuda"), name) == ("cuda" in KERNELS[name])
    pytest.importorskip("triton")
    in_triton = hasattr(importlib.import_module("fastsep.triton.operators"), name)
    assert in_triton == ("triton" in KERNELS[name])


@pytest.mark.parametrize("forced", [None, "triton", "cuda"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_gpu_runs_every_operator(
    monkeypatch: pytest.MonkeyPatch, name: str, forced: str | None
) -> None:
    """With the forced backend's kernel, else with Triton's, else in plain PyTorch; or put together
    of others before it gets there, as stacks in training are.
    """
    if name.startswith("sep_conv2d_bn"):
        assert KERNELS[name] == ("cpu",)
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastsep::{name}", "CUDA")
        return
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "_forced", forced)
    if forced == "cuda" and name in ("sep_conv2d", "sep_conv2d_block"):
        expected = "fastsep.cuda"
    elif name in ("bin_statistics", "global_pool_mlp", "log_mel", "sep_conv2d_masked_stack"):
        expected = "fastsep.reference"
    else:
        expected = "fastsep.triton.operators"
    module = gpu_kernels(name)
    assert module.__name__ == expected
    assert callable(getattr(module, name))


def test_backends_says_what_runs_and_why_not() -> None:
    status = fastsep.backends()
    assert set(status) == {"cpu", "triton", "cuda", "reference"}
    assert status["reference"].available
    assert all(s.detail for s in status.values())


def test_use_backend_within_a_block_and_nested(cpu_kernels: None) -> None:
    x, layer = random(1, 3, 5, 4), SepConv2d(3, 4).double()
    meta = copy.deepcopy(layer).to("meta")

    def forced() -> bool:
        try:
            meta(x.to("meta"))
        except ValueError as error:
            assert "'cpu' is forced" in str(error)
            return True
        return False

    with fastsep.use_backend("reference"):
        assert not forced()
        with fastsep.use_backend("cpu"):
            assert forced()
            with fastsep.use_backend(None):
                assert not forced()
            assert forced()
        assert not forced()
        with pytest.raises(KeyError), fastsep.use_backend("cpu"):
            raise KeyError
        assert not forced()
        fastsep.use_backend("cpu")
        assert forced()


def test_use_backend_as_an_object_used_again() -> None:
    before = kernels._forced
    chosen = fastsep.use_backend("reference")
    for _ in range(3):
        with chosen:
            assert kernels._forced == "reference"
            with fastsep.use_backend(None), chosen, chosen:
                assert kernels._forced == "reference"
            assert kernels._forced == "reference"
        assert kernels._forced == before
        with fastsep.use_backend(None):
            with chosen:
                assert kernels._forced == "reference"
            assert kernels._forced is None


def test_use_backend_as_an_object_goes_back_to_what_was_forced_since() -> None:
    before = kernels._forced
    with fastsep.use_backend(before):
        chosen = fastsep.use_backend("reference")
        fastsep.use_backend(None)
        with chosen:
            assert kernels._forced == "reference"
        assert kernels._forced is None
    assert kernels._forced == before


def test_use_backend_refuses_and_changes_nothing() -> None:
    with fastsep.use_backend("reference"):
        with pytest.raises(ValueError, match=r"no backend 'cudnn'; choose from cpu, triton, cuda"):
            fastsep.use_backend("cudnn")
        with pytest.raises(RuntimeError, match=r"backend 'triton' cannot run here: "):
            fastsep.use_backend("triton")
        SepConv2d(3, 4)(random(1, 3, 5, 4).float())


def test_environment_variable_forces_a_backend(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    code = """
import torch, fastsep
try:
    weights = [torch.ones(1, n, device="meta") for n in (1, 3, 3)]
    fastsep.sep_conv2d(torch.ones(1, 1, 2, 2, device="meta"), *weights)
except ValueError as error:
    print(error)
"""
    forced = run_python(code, FASTSEP_BACKEND="reference")
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout == ""
    if fastsep.backends()["cpu"].available:
        forced = run_python(code, FASTSEP_BACKEND="cpu")
        assert "'cpu' is forced" in forced.stdout, forced.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cudnn", "ValueError: FASTSEP_BACKEND: there is no backend 'cudnn'; choose from"),
        ("triton", "RuntimeError: FASTSEP_BACKEND: backend 'triton' cannot run here: "),
    ],
)
def test_environment_variable_that_cannot_be_followed(
    run_python: Callable[..., subprocess.CompletedProcess[str]], name: str, message: str
) -> None:
    run = run_python("import fastsep", FASTSEP_BACKEND=name)
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].startswith(message)


def test_a_forced_backend_refuses_tensors_of_other_devices(cpu_kernels: None) -> None:
    x, *weights = (
        torch.ones(shape, device="meta") for shape in ((2, 3, 8, 6), (4, 3), (4, 3), (4, 3))
    )
    with (
        fastsep.use_backend("cpu"),
        pytest.raises(ValueError, match=r"'cpu' is forced but takes cpu tensors, got one on meta"),
    ):
        fastsep.sep_conv2d(x, *weights)


@pytest.mark.parametrize(
    ("sources", "library", "environment", "warnings"),
    [
        (True, False, {}, 1),
        (True, False, {"FASTSEP_BACKEND": "reference"}, 0),
        (True, False, {"FASTSEP_NO_EXT": "1"}, 0),
        (False, False, {}, 0),  # installed without, so on purpose
        (False, True, {}, 1),  # there, but does not load
    ],
)
def test_missing_kernels_are_said_once_unless_asked_for(
    tmp_path: Path, sources: bool, library: bool, environment: dict[str, str], warnings: int
) -> None:
    """At the first use: importing and moving around stay silent."""
    package = tmp_path / "fastsep"
    shutil.copytree(Path(fastsep.__file__).parent, package, ignore=shutil.ignore_patterns("*.so"))
    if sources:
        (tmp_path / "csrc").mkdir()
    if library:
        (package / "_cpu.abi3.so").write_text("no library")
    program = """
import sys, warnings
with warnings.catch_warnings(action="error"):
    import torch, fastsep
    layer = fastsep.SepConv2d(3, 4)
for _ in range(3):
    layer(torch.randn(1, 3, 5, 4))
"""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FASTSEP_")}
    run = subprocess.run(
        [sys.executable, "-W", "always", "-P", "-c", program],
        env=inherited | environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("UserWarning: fastsep computes in plain PyTorch") == warnings
    assert ("FASTSEP_BACKEND=reference" in run.stderr) == (warnings > 0)
