"""Which kernels there are, which of them can run here, and which ones a call uses."""

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType

import torch

_PACKAGE = Path(__file__).parent

# The backends with kernels of their own for an operator (its schema is in fastsep.ops). Elsewhere a
# public function does with other operators or in plain PyTorch, and the CUDA C++ backend's
# gradients are Triton's.
KERNELS: dict[str, tuple[str, ...]] = {
    "sep_conv2d": ("cpu", "triton", "cuda"),
    "sep_conv2d_backward": ("cpu", "triton"),
    "sep_conv2d_block": ("cpu", "triton", "cuda"),
    "sep_conv2d_block_backward": ("cpu", "triton"),
    "sep_conv2d_stack": ("cpu", "triton"),
    "sep_conv2d_masked_stack": ("cpu",),
    "sep_conv2d_bn_stack": ("cpu",),
    "sep_conv2d_bn_stack_backward": ("cpu",),
    "global_pool_mlp": ("cpu",),
    "bin_statistics": ("cpu",),
    "log_mel": ("cpu",),
}


@dataclass(frozen=True)
class BackendStatus:
    """Of a backend. available: whether calls can use it here; detail: what it is, or why not."""

    available: bool
    detail: str


def _load_library(library: str) -> str | None:
    """Loads a compiled library of the package; returns why it could not, or None."""
    path = _PACKAGE / f"{library}.abi3.so"
    if not path.exists():
        return (
            f"{path} was not built: run `pip install .` with a C++ compiler; if this path is a "
            "clone of the sources, leave it for Python to find what is installed"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


def interpreted() -> bool:
    """Whether Triton's kernels are to run on CPU tensors, in Triton's interpreter, for tests."""
    return (
        os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("FASTSEP_BACKEND") == "triton"
    )


_has_triton = find_spec("triton") is not None  # importing it takes longer than `import fastsep`
_cpu_missing = "Triton's interpreter takes its place" if interpreted() else _load_library("_cpu")
if os.environ.get("FASTSEP_CPU_ISA") and _cpu_missing is None:
    try:
        torch.ops.fastsep_cpu.set_isa(os.environ["FASTSEP_CPU_ISA"])
    except RuntimeError as error:
        raise RuntimeError(f"FASTSEP_CPU_ISA: {error}".splitlines()[0]) from None


def vector_bytes() -> int:
    """Of the instruction set that the C++ kernels run for."""
    isa = "baseline" if _cpu_missing is not None else torch.ops.fastsep_cpu.isa()
    return {"avx2": 32, "baseline": 16}.get(isa, 64)


def _cpu() -> BackendStatus:
    if _cpu_missing is not None:
        return BackendStatus(False, _cpu_missing)
    isa = torch.ops.fastsep_cpu.isa()
    runs = ", ".join(torch.ops.fastsep_cpu.supported_isas())
    return BackendStatus(True, f"C++ for {isa}; this machine runs {runs} (FASTSEP_CPU_ISA chooses)")


@cache
def _triton() -> BackendStatus:
    if not torch.cuda.is_available() and not interpreted():
        return BackendStatus(False, "PyTorch sees no CUDA device")
    if not _has_triton:
        return BackendStatus(False, "Triton is not installed: run `pip install triton`")
    triton = importlib.import_module("triton")
    if interpreted():
        return BackendStatus(True, "Triton's interpreter on CPU tensors: for tests, very slow")
    return BackendStatus(True, f"Triton {triton.__version__}, compiled at first use")


@cache
def _cuda() -> BackendStatus:
    if not torch.cuda.is_available():
        return BackendStatus(False, "PyTorch sees no CUDA device")
    missing = _load_library("_cuda")  # only now: it needs the CUDA runtime, which not all have
    if missing is not None:
        return BackendStatus(False, missing)
    return BackendStatus(True, "CUDA C++, inference only, compiled but never run by us")


def _reference() -> BackendStatus:
    return BackendStatus(True, "plain PyTorch, any device")


_STATUS: dict[str, Callable[[], BackendStatus]] = {
    "cpu": _cpu,
    "triton": _triton,
    "cuda": _cuda,
    "reference": _reference,
}


def backends() -> dict[str, BackendStatus]:
    """What can run on this machine and, for what cannot, why."""
    return {name: status() for name, status in _STATUS.items()}


def _checked(name: str | None, source: str) -> str | None:
    if name is None:
        return None
    if name not in _STATUS:
        raise ValueError(
            f"{source}: there is no backend {name!r}; choose from {', '.join(_STATUS)}"
        )
    status = _STATUS[name]()
    if not status.available:
        raise RuntimeError(f"{source}: backend {name!r} cannot run here: {status.detail}")
    return name


_forced: str | None = _checked(os.environ.get("FASTSEP_BACKEND") or None, "FASTSEP_BACKEND")


class use_backend:
    """Makes every call use one backend: from here on, or inside a `with` block.

    Holds for the whole process. The object may be entered any number of times; leaving a block
    goes back to what was before it.

    Args:
        name: "cpu", "triton", "cuda", "reference", or None to choose by the tensors' device again.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a backend that cannot run here.
    """

    def __init__(self, name: str | None) -> None:
        self._name = _checked(name, "use_backend")
        self._previous = [_force(self._name)]
        self._entered = False

    def __enter__(self) -> None:
        if (
            self._entered or _forced != self._name
        ):  # else `with use_backend(...)` has just forced it
            self._previous.append(_force(self._name))
        self._entered = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _force(self._previous.pop())


def _force(name: str | None) -> str | None:
    """Forces a backend that was checked; returns what was forced before."""
    global _forced
    previous, _forced = _forced, name
    return previous


def _unasked_for() -> bool:
    """Whether kernels are missing where nobody has said that they may be: in a clone, or broken."""
    asked = os.environ.get("FASTSEP_NO_EXT") == "1" or interpreted()
    clone = (_PACKAGE.parent / "csrc").is_dir()
    built = (_PACKAGE / "_cpu.abi3.so").exists()
    return _cpu_missing is not None and not asked and (clone or built)


_to_warn = _unasked_for()


def _warn() -> None:
    """At the first use, not at import: what does not compute needs no kernels."""
    global _to_warn
    _to_warn = False
    warnings.warn(
        f"fastsep computes in plain PyTorch, many times slower: {_cpu_missing} "
        "(FASTSEP_BACKEND=reference asks for it)",
        stacklevel=2,
    )


def _taken(device: torch.device) -> str:
    """The type of device whose tensors are taken: that of `device`, unless one is forced."""
    gpu = "cpu" if interpreted() else "cuda"
    return {"cpu": "cpu", "triton": gpu, "cuda": "cuda"}.get(_forced or "", device.type)


def takes(device: torch.device) -> bool:
    """Whether the backend that is forced, if one is, takes tensors on `device`."""
    return device.type == _taken(device)


def select(device: torch.device) -> str:
    """The backend for tensors on `device`.

    Raises:
        ValueError: the backend that is forced does not take them.
    """
    if _forced is None:
        if device.type == "cpu" and _cpu_missing is None:
            return "cpu"
        if _to_warn and device.type == "cpu" and not torch.compiler.is_compiling():
            _warn()
        return "triton" if device.type == "cuda" and _has_triton else "reference"
    if not takes(device):
        raise ValueError(
            f"backend {_forced!r} is forced but takes {_taken(device)} tensors, got one on "
            f"{device}; call use_backend(None) to choose by device"
        )
    return _forced


def gpu_kernels(operator: str) -> ModuleType:
    """The module whose function of this name runs the operator on a GPU, imported at first use."""
    backends_with_it = KERNELS[operator]
    if _forced == "cuda" and "cuda" in backends_with_it:
        return importlib.import_module("fastsep.cuda")
    if "triton" in backends_with_it:
        return importlib.import_module("fastsep.triton.operators")
    return importlib.import_module("fastsep.reference")
