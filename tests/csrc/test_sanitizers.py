"""The CPU kernels under the address and undefined-behaviour sanitizers, in exact buffers."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-Og", "-g1", "-Wno-psabi", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all"]  # fmt: skip


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ and its sanitizers")
def test_kernels_are_clean(tmp_path: Path) -> None:
    sources = [ROOT / "tests/csrc/sanitize.cpp", *sorted((ROOT / "csrc/cpu").glob("isa_*.cpp"))]
    assert len(sources) == 5

    def compile_one(source: Path) -> Path:
        target = tmp_path / f"{source.stem}.o"
        emulated = (
            ["-include", ROOT / "tests/csrc/emulated_bf16.h"] if "bf16" in source.stem else []
        )
        subprocess.run(["g++", *FLAGS, *emulated, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = tmp_path / "sanitize"
    subprocess.run(["g++", "-fsanitize=address,undefined", *objects, "-o", program], check=True)

    def run(seed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, seed], capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(run, ("1", "2")):
            assert result.returncode == 0, result.stderr
            assert result.stdout.endswith(" runs\n")
