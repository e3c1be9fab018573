"""What the GPU kernels need, without a GPU: compiled ahead of time, their registers, spills and
shared memory as the assembler reports them.

`python -m benchmarks.triton_resources` compiles every kernel for the network's layers, in every
arithmetic and for every target, with the tile that is used where nothing was measured, and writes
results/compiled/triton_resources.csv. A test does it again and compares.
"""

import csv
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.workloads import LAYERS
from fastsep.triton import launch
from fastsep.triton.launch import Operator
from fastsep.triton.tiles import Launch, candidates_for

TABLE = Path(__file__).parent / "results" / "compiled" / "triton_resources.csv"
ARITHMETIC = {
    "ieee": torch.float32,
    "tf32": torch.float32,
    "half": torch.bfloat16,
    "float64": torch.float64,
}
KERNELS = ("forward", "sums", "input_gradient", "pointwise_gradient")

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def main() -> None:
    rows = table()
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table() -> list[dict[str, str]]:
    """One row a kernel, layer, arithmetic and target."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(_rows, TARGETS) for row in rows]


def _rows(target: str) -> list[dict[str, str]]:
    rows = []
    for kernel in KERNELS:
        for layer in LAYERS:
            for arithmetic in ARITHMETIC:
                if layer == "block 1" and kernel == "pointwise_gradient":
                    continue  # of one input channel it comes from the sums
                if layer == "block 1" and arithmetic == "tf32":
                    continue  # no matrix product
                job = network_job(kernel, layer, arithmetic)
                columns = {"target": target, "kernel": kernel, "layer": layer,
                           "arithmetic": arithmetic, **job.tile._asdict(),
                           **asdict(resources(job, target))}  # fmt: skip
                rows.append({name: str(value) for name, value in columns.items()})
    return rows


def network_job(kernel: str, layer: str, arithmetic: str, batch: int = 32) -> Launch:
    """A launch of the network's block, on tensors without data."""
    torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    cin, cout, frames, bins = LAYERS[layer]
    empty = partial(torch.empty, dtype=ARITHMETIC[arithmetic], device="meta")
    x, y = empty(batch, cin, frames, bins), empty(batch, cout, frames // 2, bins // 2)
    positive = empty(batch, cout, frames, bins, dtype=torch.int8)
    taps = empty(cout, 3)
    op = Operator(empty(cout, cin), taps, taps, empty(cout), 2, 2, True, x.dtype)
    tile = candidates_for(kernel, op.size(x), arithmetic)[0]
    plans = {
        "forward": lambda: launch.forward(x, y, op),
        "sums": lambda: launch.sums(x, y, positive, op, []),
        "input_gradient": lambda: launch.input_gradient(y, positive, x, op),
        "pointwise_gradient": lambda: launch.pointwise_gradient(x, y, positive, op, []),
    }
    return plans[kernel]()(tile)


@dataclass(frozen=True)
class Resources:
    """Of one program: registers a thread, bytes or registers spilled, bytes of shared memory."""

    registers: int
    spills: int
    shared: int


def resources(job: Launch, target: str) -> Resources:
    """Compiles a launch as it would be at run time, for tensors of any address divisible by 16."""
    gpu = TARGETS[target]
    backend = make_backend(gpu)
    kernel = job.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options: dict[str, Any] = job.tile.options(gpu.warp_size)
    bound, specialization, options = bind(*job.arguments, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=gpu, options=parsed.__dict__)
    if gpu.backend == "hip":
        return _of_amdgcn(compiled.asm["amdgcn"], compiled.metadata.shared)
    return _of_ptx(compiled.asm["ptx"], gpu, compiled.metadata.shared)


def _of_ptx(ptx: str, gpu: GPUTarget, shared: int) -> Resources:
    knobs = triton.knobs.nvidia
    tool = knobs.ptxas_blackwell.path if gpu.arch >= 100 else knobs.ptxas.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        arch = f"sm_{gpu.arch}" + ("a" if gpu.arch >= 90 else "")
        command = [tool, "-v", f"--gpu-name={arch}", str(path), "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Resources(
        _number(r"Used (\d+) registers", said),
        _number(r"(\d+) bytes spill stores", said) + _number(r"(\d+) bytes spill loads", said),
        shared,
    )


def _of_amdgcn(text: str, shared: int) -> Resources:
    return Resources(
        _number(r"\.vgpr_count:\s*(\d+)", text),
        _number(r"\.vgpr_spill_count:\s*(\d+)", text),
        shared,
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the assembler's report has no {pattern!r}:\n{text[:2000]}")
    return int(found.group(1))


if __name__ == "__main__":
    main()
