"""A stack keeps its maps in the cache: a forward needs hardly more memory than its ends."""

import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

PROGRAM = """
import torch, fastsep

def peak():  # kB this process ever held at once, since the last reset
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

torch.set_num_threads(2)
widths = (1, 64, 128, 128, 128)
stack = fastsep.SepConvStack(
    fastsep.SepConvBlock(a, b) for a, b in zip(widths, widths[1:])
)
stack = fastsep.fold_batchnorm(stack)
x = torch.zeros(8, 1, 431, 256)
with torch.inference_mode():
    stack(torch.zeros(1, 1, 16, 16))  # loads what is loaded once
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    y = stack(x)
print((peak() - before) * 1024, x.nbytes + y.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_batch(
    cpu_kernels: None, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    run = run_python(PROGRAM)
    assert run.returncode == 0, run.stderr
    growth, maps = map(int, run.stdout.split())
    assert growth < 1.3 * maps + 8 * 2**20
