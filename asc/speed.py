"""The time of a clip with fused layers and with PyTorch's own, each as fast as it can be set up.

Run as a program (see `compare`) it measures and prints JSON: a process reads the allocator's
settings, without which page faults on fresh maps dominate PyTorch's time, when it starts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fastsep
from asc.checkpoint import load_model
from asc.compute import DeviceName, send
from asc.task import FRAMES, N_MELS
from fastsep.eager import to_eager

# glibc keeps freed memory, as any good allocator does.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
REPEATS = 15


@dataclass(frozen=True)
class Speed:
    """Median seconds of a 10 s clip, the memory layout that suits PyTorch best, how measured."""

    fused: float
    eager: float
    layout: str
    measured: str

    @property
    def ratio(self) -> float:
        """How many times as long PyTorch's own layers take."""
        return self.eager / self.fused


def compare(weights: Path, device: DeviceName = "cpu") -> Speed:
    """Measures the network of a file in a process of its own, whose allocator keeps memory."""
    # The fastsep that is measured is the one that was imported here; -P: not one in the current
    # folder, such as a clone's, which has no kernels.
    command = [sys.executable, "-P", "-m", "asc.speed", str(weights), "--device", device]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = os.environ | KEEP_MEMORY | {"PYTHONPATH": path}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return Speed(**json.loads(ended.stdout))


def measure(weights: Path, device: DeviceName, repeats: int = REPEATS) -> Speed:
    """Fused layers, nn.Conv2d on NCHW and on channels_last maps: in turn, in IEEE float32."""
    model = load_model(weights).to(device)
    plain, last = to_eager(model), to_eager(model)
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    logmel = torch.randn(1, 1, FRAMES, N_MELS, generator=torch.Generator().manual_seed(0))
    logmel = send(logmel, device)
    runs: list[tuple[nn.Module, Tensor]] = [
        (model, logmel),
        (plain, logmel),
        (last, logmel.contiguous(memory_format=torch.channels_last)),
    ]
    seconds: list[list[float]] = [[], [], []]
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for _ in range(3 + repeats):  # in turn, so that all meet the same disturbances
            for (network, x), times in zip(runs, seconds, strict=True):
                start = time.perf_counter()
                network(x).cpu()  # which waits for a GPU
                times.append(time.perf_counter() - start)
    fused, nchw, channels_last = (statistics.median(times[3:]) for times in seconds)  # 3 to warm up
    if device == "cuda":
        backend, name, where = "triton", "Triton", torch.cuda.get_device_name(device)
    else:
        backend, name, where = "cpu", "C++", f"{torch.get_num_threads()} threads"
    kernels = "fastsep's" if fastsep.backends()[backend].available else "no"
    return Speed(
        fused,
        min(nchw, channels_last),
        "NCHW" if nchw < channels_last else "channels_last",
        f"{kernels} {name} kernels; one 10 s clip, float32, {where}, median of {repeats} in turn, "
        f"PyTorch {torch.__version__} with an allocator that keeps memory",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m asc.speed")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    print(json.dumps(asdict(measure(arguments.weights, arguments.device))))


if __name__ == "__main__":
    main()
