"""The machine and its limits: what the figures belong to and are shares of."""

import platform
from functools import partial
from importlib.metadata import version

import torch

import fastsep
from benchmarks.gpu.results import Case, Row
from benchmarks.gpu.timing import DTYPES, PRECISIONS, median_ms, settings
from benchmarks.machine import commit
from fastsep.kernels import select

COPY, MATRIX = "copy bandwidth", "matrix rate, {}"


def cases() -> list[Case]:
    rates = [Case(MATRIX.format(p), partial(matrix_rate, p)) for p in PRECISIONS]
    return [
        Case("device", describe),
        Case("backend", backend),
        Case(COPY, copy_bandwidth),
        *rates,
    ]


def describe() -> Row:
    device = torch.cuda.get_device_properties()
    return {
        "device": device.name,
        "compute capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory GB": device.total_memory / 1e9,
        "L2 MB": device.L2_cache_size / 1e6,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cudnn": torch.backends.cudnn.version(),
        "fastsep": fastsep.__version__,
        "commit": commit(),
    }


def backend() -> Row:
    chosen = select(torch.device("cuda"))
    if chosen != "triton":
        detail = fastsep.backends()["triton"].detail
        raise RuntimeError(f"CUDA tensors go to {chosen!r}, not to the Triton kernels: {detail}")
    return {"backend": chosen}


def copy_bandwidth() -> Row:
    """Bytes read plus bytes written a second, copying 2 GB."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    ms, _ = median_ms(target.copy_, [(source,)])
    return {"GB/s": 2 * source.nbytes / ms * 1e-6}


def matrix_rate(precision: str) -> Row:
    """A multiply-add counts 2; cuBLAS on random 8192 x 8192 matrices (zeros run faster)."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=DTYPES[precision]) for _ in range(2))
    with settings(precision):
        ms, _ = median_ms(torch.mm, [(a, b)])
    return {"TFLOP/s": 2 * n**3 / ms * 1e-9}
