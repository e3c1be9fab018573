"""How much memory a forward needs, and what is said where there is not enough."""

import re
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
    """A stack keeps its maps in the cache: it needs hardly more than its ends."""
    run = run_python(PROGRAM)
    assert run.returncode == 0, run.stderr
    growth, maps = map(int, run.stdout.split())
    assert growth < 1.3 * maps + 8 * 2**20


SCARCE = """
import resource, torch, fastsep

def weights(cin, cout, needs=False):
    shapes = (cout, cin), (cout, 3), (cout, 3), (cout,)
    return [torch.ones(shape, requires_grad=needs) for shape in shapes]

def zeros(*shape):  # that take no memory
    return torch.zeros(1, 1, 1, 1).expand(shape)

torch.set_num_threads(2)
few, many = weights(4, 8), weights(2048, 2048, True)
def small():
    return fastsep.sep_conv2d_block(zeros(3, 4, 8, 8), *few)
expected, y = small(), fastsep.sep_conv2d_block(zeros(16, 2048, 2, 2), *many)
with open("/proc/self/status") as status:
    held = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 200 * 2**20, -1))
try:
    {call}
except MemoryError as error:
    print(error)
assert torch.equal(small(), expected)
"""
CALLS = {
    "one clip": ("fastsep.sep_conv2d_block(zeros(1, 4, 6, 2**20), *few, pool=6)", "own work"),
    "clips": ("fastsep.sep_conv2d_block(zeros(4, 4, 6, 2**20), *few, pool=6)", "own work"),
    "stack": ("fastsep.sep_conv2d_stack(zeros(1, 4, 6, 2**20), [(*few, 2, 6)])", "own work"),
    "result": ("fastsep.sep_conv2d(zeros(40, 4, 6, 2**20), *few)", "8053063680 bytes .* a result"),
    "backward": ("y.sum().backward()", "what the threads share"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("call", "purpose"), CALLS.values(), ids=CALLS)
def test_memory_that_cannot_be_had(
    cpu_kernels: None,
    run_python: Callable[..., CompletedProcess[str]],
    call: str,
    purpose: str,
) -> None:
    """Is a MemoryError that says how much; what fits runs afterwards as before."""
    run = run_python(SCARCE.replace("{call}", call))
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"fastsep cannot get \d+ bytes of memory for .*; free some.*\n", run.stdout)
    assert re.search(purpose, run.stdout)
