"""What is built and shipped: the abi3 wheel, the source distribution, the pure-Python install."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (".ci", "asc", "benchmarks", "csrc", "fastsep", "tests")
FILES = {".clang-format", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md",
         "constraints.txt", "pyproject.toml", "setup.py"}  # fmt: skip


def test_the_installed_wheel_serves_every_python_from_3_11() -> None:
    wheel = importlib.metadata.distribution("fastsep").read_text("WHEEL")
    assert wheel is not None
    assert "Tag: cp311-abi3-" in wheel


def test_the_source_distribution_holds_every_tracked_source(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path,
               ROOT]  # fmt: skip
    environment = os.environ | {"FASTSEP_NO_EXT": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (archive,) = tmp_path.glob("fastsep-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so"}
    }
    assert {"csrc/cpu/kernels.h", "csrc/cuda/cross.cu", "benchmarks/peaks.cpp", ".ci/run"} <= wanted
    assert names >= wanted | FILES
    assert not [name for name in names if name.endswith((".pyc", ".so"))]


def test_without_a_compiler_it_installs_and_runs_on_the_reference(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path,
               "--no-build-isolation", ROOT]  # fmt: skip
    environment = os.environ | {"FASTSEP_NO_EXT": "1", "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert not list(tmp_path.rglob("*.so"))
    assert (tmp_path / "asc" / "report" / "templates" / "report.html").is_file()
    program = """
import json, torch, fastsep
assert fastsep.__file__.startswith(__import__("os").environ["PYTHONPATH"]), fastsep.__file__
block = fastsep.SepConvBlock(3, 5)
block(torch.randn(2, 3, 8, 8)).sum().backward()
status = fastsep.backends()["cpu"]
shape = block.eval()(torch.ones(1, 3, 9, 8)).shape
print(json.dumps([status.available, status.detail, list(shape)]))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    available, detail, shape = json.loads(run.stdout)
    assert not available
    assert "was not built" in detail
    assert shape == [1, 5, 4, 4]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_build_that_fails_ends_in_what_to_do(tmp_path: Path, compiler: str) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            "--build-lib",
            tmp_path,
            "--build-temp",
            tmp_path,
        ],
        cwd=ROOT,
        env=os.environ | {"CXX": compiler, "FASTSEP_NO_EXT": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("fastsep: ") and compiler in last and "FASTSEP_NO_EXT=1" in last
    assert "Traceback" not in run.stderr
