"""What the figures belong to: the machine, the code, what compiled it, and its peers' versions."""

import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import fastsep
from benchmarks.peaks import copy_bandwidth, fma_peak

ROOT = Path(__file__).parents[1]
PACKAGES = ("fastsep", "torch", "onnxruntime", "openvino", "numpy")


def describe() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    info = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = next((x.split(":")[1].strip() for x in info.splitlines() if "model name" in x), "")
    isa = "avx512" if "avx512vl" in info else "avx2" if "avx2" in info else "baseline"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model or platform.processor(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": commit(),
        "compiler": compiler(),
        "fma_gflops_1_thread": fma_peak(isa, 1),
        "fma_gflops_2_threads": fma_peak(isa, 2),
        "copy_gbps_1_thread": copy_bandwidth(1),
        "copy_gbps_2_threads": copy_bandwidth(2),
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def commit(tree: Path = ROOT) -> str:
    """The tree's commit, "+ changes" where tracked files differ from it."""

    def git(*command: str) -> str:
        ended = subprocess.run(["git", "-C", tree, *command], capture_output=True, text=True)
        return ended.stdout.strip() if ended.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git
        return "unknown"
    return (head or "unknown") + (" + changes" if changed else "")


def compiler(folder: Path = Path(fastsep.__file__).parent) -> str:
    """Who compiled the C++ kernels, from the comments that compilers leave in shared objects."""
    names: set[str] = set()
    for library in folder.glob("_cpu*.so"):
        said = re.findall(rb"(GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+)", library.read_bytes())
        names |= {name.decode() for name in said}
    return ", ".join(sorted(names)) or "unknown"
