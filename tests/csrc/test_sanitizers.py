"""The CPU kernels under the address and undefined-behaviour sanitizers, in exact buffers."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-Og", "-g1", "-Wno-psabi", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all"]  # fmt: skip


def has_avx512() -> bool:
    """Whether the compiler sees a machine that runs what sanitize.cpp would ask for."""
    command = ["g++", "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]
    macros = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return all(f"__AVX512{part}__" in macros for part in ("F", "DQ", "BW", "VL"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ and its sanitizers")
def test_kernels_are_clean(tmp_path: Path) -> None:
    """Those that this machine runs: of the others no more than the syntax is looked at.

    isa_avx512 is left out: isa_avx512bf16 compiles the same source for as wide vectors; only
    inference on bfloat16 maps is another there, by dot products.
    """
    builds = sorted((ROOT / "csrc/cpu").glob("isa_*.cpp"))
    assert len(builds) == 4
    sources = [path for path in builds if path.stem != "isa_avx512"]
    sources.insert(0, ROOT / "tests/csrc/sanitize.cpp")
    wide = has_avx512()

    def compile_one(source: Path) -> Path | None:
        runs = wide or "avx512" not in source.stem
        target = tmp_path / f"{source.stem}.o" if runs else None
        output = ["-fsyntax-only"] if target is None else ["-c", "-o", target]
        options = ["-DFASTSEP_AVX512"] if wide else []
        if "bf16" in source.stem:
            options += ["-include", ROOT / "tests/csrc/emulated_bf16.h"]
        subprocess.run(["g++", *FLAGS, *options, *output, source], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = [target for target in pool.map(compile_one, sources) if target is not None]
    program = tmp_path / "sanitize"
    subprocess.run(["g++", "-fsanitize=address,undefined", *objects, "-o", program], check=True)

    def run(seed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, seed], capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(run, ("1", "2")):
            assert result.returncode == 0, result.stderr
            assert result.stdout.endswith(" runs\n")
