"""Builds the compiled kernels: a shared object for the CPU and, where nvcc is found, one for CUDA.

Both use the libtorch stable ABI and CPython's limited API, so one wheel serves every Python from
3.11 and every torch from 2.11. FASTSEP_NO_EXT=1 builds neither.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

WITHOUT = "FASTSEP_NO_EXT=1 installs without the compiled kernels, all in plain PyTorch"
ABI = "0x020b000000000000"  # TORCH_TARGET_VERSION: torch 2.11


def extensions() -> tuple[list, dict]:
    if os.environ.get("FASTSEP_NO_EXT") == "1":
        print("fastsep: FASTSEP_NO_EXT=1, installing without compiled kernels")
        return [], {}
    nvcc = shutil.which("nvcc")
    if nvcc is not None and "CUDA_HOME" not in os.environ:
        os.environ["CUDA_HOME"] = cuda_home(nvcc)
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    common = {"define_macros": [("TORCH_TARGET_VERSION", ABI)], "py_limited_api": True}
    cxx = ["-O3", "-std=c++20", "-Wall", "-Wextra", "-Wno-psabi", "-ffp-contract=fast",
           "-fvisibility=hidden", "-g0"]  # fmt: skip
    found = [
        CppExtension(
            "fastsep._cpu",
            [
                str(path)
                for where in ("csrc/ops", "csrc/cpu")
                for path in sorted(Path(where).glob("*.cpp"))
            ],
            extra_compile_args={"cxx": cxx},
            **common,
        )
    ]
    if nvcc is None:
        print("fastsep: no nvcc on the PATH, skipping the CUDA kernels")
    elif torch.version.cuda is None:
        print("fastsep: this PyTorch is built without CUDA, skipping the CUDA kernels")
    elif nvcc_release(nvcc).split(".")[0] != torch.version.cuda.split(".")[0]:
        print(
            f"fastsep: nvcc {nvcc_release(nvcc)} does not fit PyTorch's CUDA {torch.version.cuda}, "
            "skipping the CUDA kernels"
        )
    else:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        found.append(
            CUDAExtension(
                "fastsep._cuda",
                ["csrc/cuda/cross.cu"],
                extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-std=c++20", "-DUSE_CUDA"]},
                **common,
            )
        )

    class Build(BuildExtension):
        """In the end one sentence on what to do, not only pages of compilers and of PyTorch."""

        def run(self) -> None:
            compiler = os.environ.get("CXX") or "c++"
            if shutil.which(compiler.split()[0]) is None:
                sys.exit(
                    f"fastsep: there is no C++ compiler '{compiler}'; install one, or: {WITHOUT}"
                )
            try:
                super().run()
            except Exception as error:  # of setuptools, ninja or PyTorch, by what went wrong
                message = " ".join(str(error).split())
                sys.exit(f"fastsep: the kernels could not be built ({message}): {WITHOUT}")

    return found, {"build_ext": Build}


def nvcc_release(nvcc: str) -> str:
    listing = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", listing)
    return release.group(1) if release else "of an unknown release"


def cuda_home(nvcc: str) -> str:
    """The toolkit that nvcc belongs to, also where the one on the PATH is a wrapper script."""
    listing = subprocess.run(
        [nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True
    ).stderr
    for line in listing.splitlines():
        if line.startswith("#$ TOP="):
            return os.path.realpath(line.removeprefix("#$ TOP="))
    return str(Path(nvcc).resolve().parents[1])


ext_modules, cmdclass = extensions()
setup(
    ext_modules=ext_modules,
    cmdclass=cmdclass,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ext_modules else {},
)
