"""The machine's own limits, measured in the run that quotes shares of them."""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("peaks.cpp")
# Vector bytes and compiler options of each instruction set fastsep is built for.
BUILDS = {
    "avx512bf16": (64, ["-mavx512f", "-mfma"]),
    "avx512": (64, ["-mavx512f", "-mfma"]),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "baseline": (16, []),
}


@cache
def _library(isa: str) -> ctypes.CDLL:
    width, options = BUILDS[isa]
    target = Path(tempfile.mkdtemp()) / "peaks.so"
    command = ["g++", "-std=c++17", "-O3", "-ffp-contract=fast", *options]
    command += [f"-DFASTSEP_VECTOR_BYTES={width}", "-shared", "-fPIC", str(SOURCE)]
    command += ["-o", str(target)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    for function in (library.fma_gflops, library.copy_gbps):
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    return library


def fma_peak(isa: str, threads: int, seconds: float = 0.2) -> float:
    """GFLOP/s (a multiply-add counts 2) of `threads` threads with nothing but multiply-adds."""
    return _together(_library(isa).fma_gflops, threads, seconds)


def copy_bandwidth(threads: int, seconds: float = 0.5) -> float:
    """GB/s, read plus written, of `threads` threads copying memory."""
    return _together(_library("baseline").copy_gbps, threads, seconds)


def _together(function: Callable[[float], float], threads: int, seconds: float) -> float:
    with ThreadPoolExecutor(threads) as pool:  # ctypes releases the GIL
        return sum(pool.map(function, [seconds] * threads))
