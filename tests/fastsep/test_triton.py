"""Triton's kernels, on a GPU where there is one and otherwise in Triton's interpreter.

The interpreter stands in for the CPU kernels of a whole process, so there the tests that are marked
`interpreted`, here and in other files, run in a child process on fewer examples.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import extremes
import pytest
import torch

import fastsep
from fastsep import reference
from fastsep.kernels import interpreted
from fastsep.testing import GRADIENTS

TESTS = Path(__file__).parents[1]
FILES = [
    path for path in sorted(TESTS.rglob("test_*.py")) if "mark.interpreted" in path.read_text()
]
pytest.importorskip("triton")
CUDA = torch.cuda.is_available()
on_a_device = pytest.mark.skipif(not (CUDA or interpreted()), reason="run in a child process")
DEVICE = "cuda" if CUDA else "cpu"


@pytest.mark.skipif(CUDA or interpreted(), reason="the tests run here and now")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_under_the_interpreter(file: Path) -> None:
    root = TESTS.parent
    environment = {"FASTSEP_BACKEND": "triton", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--rootdir", str(root),
               "-p", "no:cacheprovider", "-W", "ignore", "-m", "interpreted", file]  # fmt: skip
    child = subprocess.run(command, env=os.environ | environment, cwd=root, capture_output=True,
                           text=True)  # fmt: skip
    said = child.stdout + child.stderr
    assert child.returncode == 0, said[-6000:]
    assert " passed" in said


# (N, Cin, T, F), Cout, dilation, pool: one for every way the kernels are compiled. The interpreter
# is slow, so maps are only as large as several tiles need, of which float64 has the smallest.
AWKWARD = {
    "one column": ((2, 3, 9, 1), 4, 2, 2),
    "one row": ((2, 3, 1, 9), 4, 2, 1),
    "spans of time": ((1, 2, 35, 5), 3, 2, 2),
    "spans, one channel": ((1, 1, 36, 5), 3, 2, 2),
    "phases of spans": ((1, 2, 39, 5), 3, 4, 2),
    "windows of bins": ((1, 2, 5, 261), 3, 2, 2),
    "windows, one channel": ((1, 1, 5, 521), 3, 2, 2),
    "windows narrower than the taps": ((1, 2, 5, 140), 3, 34, 2),
    "taps beyond the map": ((1, 2, 5, 7), 3, 1000, 2),
    "dilation 1": ((1, 2, 9, 20), 3, 1, 2),
    "dilation 3": ((1, 2, 9, 20), 3, 3, 2),
    "pool 4": ((1, 2, 13, 21), 3, 4, 4),
    "pool 3, not of the kernels": ((1, 2, 8, 19), 3, 2, 3),
    "several steps of channels": ((1, 70, 5, 6), 67, 2, 2),
    "blocks of positions": ((2, 2, 9, 17), 3, 2, 1),
}
IN_FLOAT64 = {
    "windows of bins": ((1, 2, 5, 37), 3, 2, 2),
    "windows, one channel": ((1, 1, 5, 37), 3, 2, 2),
    "windows narrower than the taps": ((1, 2, 5, 40), 3, 6, 2),
    "several steps of channels": ((1, 33, 5, 6), 33, 2, 2),
}


@on_a_device
@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", AWKWARD)
def test_awkward(
    weights: Callable[..., Any],
    check_forward: Callable[..., None],
    check_gradients: Callable[..., None],
    case: str,
    dtype: torch.dtype,
) -> None:
    smaller = IN_FLOAT64 if dtype == torch.float64 else {}
    shape, cout, dilation, pool = smaller.get(case, AWKWARD[case])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    w = weights(shape[1], cout, dtype)
    leaves = [t.detach().to(DEVICE).requires_grad_() for t in (x, *w)]
    y = fastsep.sep_conv2d_block(*leaves, dilation=dilation, pool=pool)
    check_forward(y.cpu(), x, [(*w, dilation, pool)])
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(y, leaves, grad.to(DEVICE))
    block = (*w, dilation, pool)
    check_gradients([g.cpu() for g in gradients], grad, x, block, triton=True)


@on_a_device
@pytest.mark.interpreted
@pytest.mark.parametrize("channels", [1, 3])
def test_stripes_and_affine_on_load(weights: Callable[..., Any], channels: int) -> None:
    """Against the same kernels on a map loaded by PyTorch; what is masked may hold anything."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, channels, 13, 21, generator=generator)
    scale, shift = torch.randn(2, 21, generator=generator)
    stripes = torch.tensor(
        [[[0, 2, 5], [1, -3, 4], [2, 0, 9]], [[1, 20, 99], [0, 6, 6], [0, 9, 10]]]
    )
    x[0, :, 3], x[1, :, 9] = torch.nan, torch.inf
    block = fastsep.BlockParameters(*(w.to(DEVICE) for w in weights(channels, 4, torch.float32)))
    on_device = [t.to(DEVICE) for t in (x, scale, shift, stripes)]
    y = fastsep.sep_conv2d_stack(
        on_device[0], [block], affine=(on_device[1], on_device[2]), stripes=on_device[3]
    )
    loaded = reference.load(*on_device)
    assert loaded.isfinite().all()
    expected = fastsep.sep_conv2d_block(loaded, *block[:4])
    # The affine may be one fused multiply-add here and two roundings there.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@on_a_device
@pytest.mark.interpreted
def test_nan_reaches_what_depends_on_it(weights: Callable[..., Any]) -> None:
    x = torch.randn(1, 2, 12, 14)
    x[0, 0, 5, 6] = x[0, 1, 0, 13] = torch.nan
    w = weights(2, 3, torch.float32)
    for function in (fastsep.sep_conv2d, fastsep.sep_conv2d_block):
        y = function(x.to(DEVICE), *(t.to(DEVICE) for t in w)).cpu()
        expected = getattr(reference, function.__name__)(x, *w)
        assert torch.equal(y.isnan(), expected.isnan())


@on_a_device
@pytest.mark.interpreted
@pytest.mark.parametrize("channels", [1, 2])
def test_infinity_meets_both_centre_taps(weights: Callable[..., Any], channels: int) -> None:
    """inf - 2 inf is NaN, which the sum of the taps would not show; forward and backward."""
    x = torch.randn(1, channels, 12, 14)
    x[0, 0, 5, 6] = torch.inf
    w = [t.abs() for t in weights(channels, 3, torch.float32)]
    w[2][:, 1] = -2 * w[1][:, 1]
    leaves = [t.to(DEVICE).requires_grad_() for t in (x, *w)]
    for name in ("sep_conv2d", "sep_conv2d_block"):
        y, expected = getattr(fastsep, name)(*leaves), getattr(reference, name)(x, *w)
        assert expected.isnan().any()
        assert torch.equal(y.cpu().isnan(), expected.isnan())
    grad = torch.zeros_like(x[:, :1]).expand(1, 3, 12, 14).clone()
    grad[0, 1, 5, 6] = torch.inf
    y = fastsep.sep_conv2d(*leaves)
    (dx,) = torch.autograd.grad(y, leaves[:1], grad.to(DEVICE))
    assert dx.cpu()[0, :, 5, 6].isnan().all()


@on_a_device
@pytest.mark.interpreted
@pytest.mark.parametrize("seed", [0, 4, 7, 10, 16, 18])  # one and several channels, all small
def test_extreme_values_have_the_class_they_must(seed: int) -> None:
    """Finite to rounding, infinite, or NaN, weights that over- or underflow together among them.
    Only the weights' gradients for one input channel are computed in another order."""
    case = extremes.Case.draw(seed)
    dilation, pool = case.dilation, case.pool
    leaves = [t.to(DEVICE).requires_grad_() for t in (case.x, *case.first)]
    _, y = extremes.convolved(extremes.exact(case.x), case.first, dilation)
    bare = fastsep.sep_conv2d(*leaves, dilation=dilation)
    block = fastsep.sep_conv2d_block(*leaves, dilation=dilation, pool=pool)
    extremes.check("operator", bare, y)
    extremes.check("block", block, extremes.pooled(y, pool))
    for output, window in ((bare, None), (block, pool)):
        if output.numel() == 0:
            continue
        grad = case.grad[:, :, : output.shape[2], : output.shape[3]].contiguous()
        expected = extremes.gradients(grad, case.x, case.first, dilation, window)
        got = torch.autograd.grad(output, leaves, grad.to(DEVICE))
        for name, t, e in zip(GRADIENTS, got, expected, strict=True):
            if case.x.shape[1] > 1 or name in ("x", "bias"):
                extremes.check(f"gradient of {name}, {window}", t, e)


@on_a_device
@pytest.mark.interpreted
def test_strides_beyond_32_bits(weights: Callable[..., Any]) -> None:
    """Channels 2^31 elements apart; of the memory between them nothing is touched."""
    frames, bins = 4, 16
    room = torch.empty(2**31 + 64 + frames * bins, dtype=torch.float16, device=DEVICE)
    x = room.as_strided((1, 2, frames, bins), (1, 2**31 + 64, bins, 1))
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    w = [t.to(DEVICE) for t in weights(2, 3, torch.float16)]
    assert torch.equal(fastsep.sep_conv2d(x, *w), fastsep.sep_conv2d(x.contiguous(), *w))


@on_a_device
@pytest.mark.interpreted
@pytest.mark.parametrize("pool", [1, 2])
def test_gradcheck(weights: Callable[..., Any], pool: int) -> None:
    x = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaves = [t.to(DEVICE).requires_grad_() for t in (x, *weights(2, 2, torch.float64))]
    assert torch.autograd.gradcheck(
        lambda *t: fastsep.sep_conv2d_block(*t, dilation=1, pool=pool),
        leaves,
        fast_mode=True,  # along one random direction, not each: hundreds of launches
    )


@on_a_device
@pytest.mark.interpreted
def test_the_same_bits_every_time(weights: Callable[..., Any]) -> None:
    x = torch.randn(2, 2, 36, 11, device=DEVICE)
    leaves = [
        x.requires_grad_(),
        *(t.to(DEVICE).requires_grad_() for t in weights(2, 5, torch.float32)),
    ]
    runs = []
    for _ in range(2):
        y = fastsep.sep_conv2d_block(*leaves)
        runs.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
