"""The C++ kernels under every instruction set, in threads, and on values that are not numbers."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import extremes
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fastsep
from fastsep import reference
from fastsep.testing import GRADIENTS

Draw = Callable[..., tuple[Any, Any, Any, Any]]  # the fixture `weights`

# x's shape, Cout, dilation, pool: below, at and above the widths of vectors and tiles
CASES = [
    ((2, 1, 9, 7), 5, 2, 2),
    ((1, 3, 1, 1), 16, 1, 1),
    ((2, 17, 13, 33), 33, 2, 2),
    ((1, 64, 12, 40), 130, 3, 3),
    ((3, 20, 35, 5), 31, 4, 1),
    ((1, 7, 3, 129), 64, 1, 2),
]


@pytest.fixture(autouse=True)
def cpu_backend(cpu_kernels: None) -> Iterator[None]:
    with fastsep.use_backend("cpu"):
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "cout", "dilation", "pool"), CASES)
def test_each_agrees_with_the_reference(
    isa: str,
    weights: Draw,
    check_forward: Callable[..., None],
    check_gradients: Callable[..., None],
    shape: tuple[int, int, int, int],
    cout: int,
    dilation: int,
    pool: int,
    dtype: torch.dtype,
) -> None:
    assert torch.ops.fastsep_cpu.isa() == isa
    inputs = [random(*shape, dtype=dtype), *weights(shape[1], cout, dtype)]
    x, *w = inputs = [t.requires_grad_() for t in inputs]
    y = fastsep.sep_conv2d(x, *w, dilation=dilation)
    check_forward(y, x, [(*w, dilation, None)])
    grad = random(*y.shape, dtype=dtype, seed=1)
    check_gradients(torch.autograd.grad(y, inputs, grad), grad, x, (*w, dilation, None))

    y = fastsep.sep_conv2d_block(x, *w, dilation=dilation, pool=pool)
    check_forward(y, x, [(*w, dilation, pool)])
    grad = random(*y.shape, dtype=dtype, seed=2)
    check_gradients(torch.autograd.grad(y, inputs, grad), grad, x, (*w, dilation, pool))

    blocks = [
        fastsep.BlockParameters(w[0], w[1], w[2], w[3], dilation, pool),
        fastsep.BlockParameters(*weights(cout, 19, dtype, 3), 1, 1),
    ]
    affine = (random(shape[3], dtype=dtype, seed=4), random(shape[3], dtype=dtype, seed=5))
    stripes = torch.tensor([[[0, 1, 2], [1, 4, 6]]], dtype=torch.int32).expand(shape[0], 2, 3)
    with torch.no_grad():
        y = fastsep.sep_conv2d_stack(x, blocks, affine=affine, stripes=stripes)
        check_forward(y, x, blocks, affine, stripes)


def test_bf16_products_on_request(
    isa: str, weights: Draw, check_forward: Callable[..., None]
) -> None:
    """compute="bf16" rounds what enters the 1x1 convolutions, if the machine gains by it."""
    x = random(2, 7, 21, 18)
    blocks = [
        fastsep.BlockParameters(*weights(7, 33, torch.float32, 1)),
        fastsep.BlockParameters(*weights(33, 20, torch.float32, 2), 1, 1),
    ]
    affine, stripes = (random(18, seed=3), random(18, seed=4)), torch.tensor([[[0, 3, 9]]] * 2)
    exact = fastsep.sep_conv2d_stack(x, blocks, affine=affine, stripes=stripes)
    y = fastsep.sep_conv2d_stack(x, blocks, affine=affine, stripes=stripes, compute="bf16")
    assert torch.equal(y, exact) == (isa != "avx512bf16")
    check_forward(y, x, blocks, affine, stripes, products=torch.bfloat16)
    with pytest.raises(AssertionError, match="more than rounding"):
        check_forward(y + 0.1, x, blocks, affine, stripes, products=torch.bfloat16)


def test_bf16_products_are_for_inference(isa: str, weights: Draw) -> None:
    """With gradients, forward and backward stay in float32."""
    leaves = [t.requires_grad_() for t in (random(2, 7, 21, 18), *weights(7, 33, torch.float32))]
    results = []
    for compute in (None, "bf16"):
        block = fastsep.BlockParameters(leaves[1], leaves[2], leaves[3], leaves[4])
        y = fastsep.sep_conv2d_stack(leaves[0], [block], compute=compute)
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_unknown_name_is_refused_and_changes_nothing() -> None:
    before = torch.ops.fastsep_cpu.isa()
    with pytest.raises(RuntimeError, match=r"instruction set sse9; choose from .*baseline"):
        torch.ops.fastsep_cpu.set_isa("sse9")
    assert torch.ops.fastsep_cpu.isa() == before


def test_unsupported_set_is_refused(all_isas: tuple[str, ...]) -> None:
    missing = sorted(set(all_isas) - set(torch.ops.fastsep_cpu.supported_isas()))
    if not missing:
        pytest.skip("this machine runs every instruction set")
    with pytest.raises(RuntimeError, match=missing[0]):
        torch.ops.fastsep_cpu.set_isa(missing[0])


def test_environment_variable_chooses(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    code = "import torch, fastsep; print(torch.ops.fastsep_cpu.isa(), fastsep.backends()['cpu'])"
    run = run_python(code, FASTSEP_CPU_ISA="baseline")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("baseline ")
    assert "C++ for baseline" in run.stdout


def test_environment_variable_with_unknown_name(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    run = run_python("import fastsep", FASTSEP_CPU_ISA="sse9")
    assert run.returncode != 0
    message = run.stderr.strip().splitlines()[-1]
    assert "FASTSEP_CPU_ISA" in message
    assert "sse9" in message
    assert "baseline" in message
    assert ".cpp" not in run.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clips", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(
    isa: str,
    weights: Draw,
    threads: Callable[[int], None],
    dtype: torch.dtype,
    clips: int,
) -> None:
    """Also for one clip, which threads share by spans of time."""
    first, second = weights(5, 33, dtype, 1), weights(33, 16, dtype, 2)
    x = random(clips, 5, 71, 23, dtype=dtype)
    leaves = [t.requires_grad_() for t in (x, *first)]
    stripes = torch.tensor([[[0, 30, 41]]], dtype=torch.int32).expand(clips, 1, 3)
    blocks = [fastsep.BlockParameters(*first), fastsep.BlockParameters(*second, 1, 3)]
    widths = ((1, 17), (17, 20), (20, 9))
    network = [fastsep.BlockParameters(*weights(*pair, dtype, 3)) for pair in widths]
    logmel = random(clips, 1, 203, 24, dtype=dtype)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        conv = fastsep.sep_conv2d(*leaves)
        block = fastsep.sep_conv2d_block(*leaves, dilation=3)
        with torch.no_grad():
            stack = fastsep.sep_conv2d_stack(x, blocks, stripes=stripes)
            deep = fastsep.sep_conv2d_stack(logmel, network, stripes=stripes)
        gradients = torch.autograd.grad((conv.float().sin().sum() + block.float().sum()), leaves)
        results.append([conv, block, stack, deep, *gradients])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_clip_does_not_depend_on_the_rest_of_its_batch(isa: str, weights: Draw) -> None:
    x = random(4, 6, 37, 18)
    blocks = [fastsep.BlockParameters(*weights(6, 20, torch.float32, 1))]
    blocks.append(fastsep.BlockParameters(*weights(20, 16, torch.float32, 2)))
    whole = fastsep.sep_conv2d_stack(x, blocks)
    for i in range(len(x)):
        assert torch.equal(fastsep.sep_conv2d_stack(x[i : i + 1], blocks), whole[i : i + 1])


def test_calls_from_several_python_threads(weights: Draw) -> None:
    def work(seed: int) -> list[Tensor]:
        cin, cout = 1 + seed % 5, 8 + 9 * (seed % 4)
        x = random(1 + seed % 3, cin, 11 + seed % 7, 20 + seed % 13, seed=seed)
        leaves = [t.requires_grad_() for t in (x, *weights(cin, cout, torch.float32, seed))]
        y = fastsep.sep_conv2d_block(*leaves, dilation=1 + seed % 3)
        return [y, *torch.autograd.grad(y.sum(), leaves)]

    expected = [work(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, list(range(40)) * 3))
    for i, result in enumerate(results):
        assert all(torch.equal(a, b) for a, b in zip(result, expected[i % 40], strict=True))


class _OnTheFly(torch.utils.data.Dataset[Tensor]):
    """Runs the operator where a feature extractor would: inside the data loader's worker."""

    def __init__(self, *inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return fastsep.sep_conv2d_block(*self.inputs)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking with threads
def test_runs_in_a_forked_data_loader_worker(weights: Draw, threads: Callable[[int], None]) -> None:
    threads(2)
    inputs = (random(3, 4, 40, 20), *weights(4, 16, torch.float32))
    expected = fastsep.sep_conv2d_block(*inputs)
    loader = DataLoader(
        _OnTheFly(*inputs), batch_size=None, num_workers=1, multiprocessing_context="fork",
        timeout=60,
    )  # fmt: skip
    assert all(torch.equal(y, expected) for y in loader)


# Values that are not numbers.


def positions(y: Tensor) -> Tensor:
    """0 where y is a number, 1 NaN, 2 infinity, 3 minus infinity."""
    return y.isnan() + 2 * y.isposinf() + 3 * y.isneginf()


def double(blocks: list[Any]) -> list[Any]:
    return [(*(w.double() for w in block[:4]), *block[4:]) for block in blocks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [(0, 0), (5, 7), (12, 18), (12, 0)])
def test_nan_and_infinity_go_where_the_reference_has_them(
    isa: str,
    weights: Draw,
    dtype: torch.dtype,
    value: float,
    where: tuple[int, int],
) -> None:
    x = random(2, 5, 13, 19, dtype=dtype)
    x[1, 3, where[0], where[1]] = value
    first, second = weights(5, 17, dtype, 1), weights(17, 20, dtype, 2)
    exact: list[Any] = [t.double() for t in (x, *first)]
    y = fastsep.sep_conv2d(x, *first)
    assert torch.equal(positions(y), positions(reference.sep_conv2d(*exact)))
    for pool in (1, 2, 3):
        blocks = [
            fastsep.BlockParameters(*first, 2, pool),
            fastsep.BlockParameters(*second, 1, 1),
        ]
        expected = reference.sep_conv2d_stack(exact[0], double(blocks))
        y = fastsep.sep_conv2d_stack(x, blocks)
        assert torch.equal(positions(y), positions(expected))
        expected = reference.sep_conv2d_stack(exact[0], double(blocks[:1]))
        y = fastsep.sep_conv2d_block(x, *first, pool=pool)
        assert torch.equal(positions(y), positions(expected))


def check_extremes(part: int) -> None:
    """The operator, the block, the stack, and gradients: finite to rounding, infinite, or NaN."""
    known: list[float] = []
    for seed in range(12 * part, 12 * part + 12):
        case = extremes.Case.draw(seed)
        dilation, pool = case.dilation, case.pool
        leaves = [t.requires_grad_() for t in (case.x, *case.first)]
        x, p, a, b, c = leaves
        _, y = extremes.convolved(extremes.exact(x), case.first, dilation)
        pooled = extremes.pooled(y, pool)
        _, deeper = extremes.convolved(pooled, case.second, 1)
        first = fastsep.BlockParameters(p, a, b, c, dilation, pool)
        p, a, b, c = case.second
        with torch.no_grad():
            stack = fastsep.sep_conv2d_stack(x, [first, fastsep.BlockParameters(p, a, b, c, 1, 1)])
        known.append(extremes.check(f"stack {seed}", stack, extremes.pooled(deeper, 1)))

        bare = fastsep.sep_conv2d(*leaves, dilation=dilation)
        known.append(extremes.check(f"operator {seed}", bare, y))
        block = fastsep.sep_conv2d_block(*leaves, dilation=dilation, pool=pool)
        known.append(extremes.check(f"block {seed}", block, pooled))
        for output, window in ((bare, None), (block, pool)):
            grad = case.grad[:, :, : output.shape[2], : output.shape[3]].contiguous()
            expected = extremes.gradients(grad, case.x, case.first, dilation, window)
            got = torch.autograd.grad(output, leaves, grad)
            for name, t, e in zip(GRADIENTS, got, expected, strict=True):
                known.append(extremes.check(f"gradient of {name} {seed} {window}", t, e))
    assert sum(known) / len(known) > 0.75  # else there is little that this has checked


@pytest.mark.parametrize("part", range(4))
def test_extreme_values_have_the_class_they_must(isa: str, part: int) -> None:
    check_extremes(part)


@pytest.mark.parametrize("part", range(4))
def test_they_have_it_in_the_reference(part: int) -> None:
    with fastsep.use_backend("reference"):
        check_extremes(part)


@pytest.mark.parametrize(
    ("pointwise", "time", "freq", "value"),
    [
        (1.0, 1.0, -1.0, torch.inf),
        (1.0, 1.0, -2.0, torch.inf),  # merged, there is no other infinity to meet
        (1.0, 1e38, 3e38, 1e-10),  # the sum of the taps is infinite
        (1.0, 3e38, -3e38, 3.0),
        (1e-30, 1e-30, 1e-30, 1e32),  # of a lone channel: merged, a 0
        (1e-38, 1e-38, 1e-38, torch.inf),
        (1e30, 1e30, 1e30, 1e-30),  # merged, infinite
        (1e30, 1e-30, 1e-30, 1e20),  # merged, finite
        (torch.inf, 1.0, 1.0, 0.0),
        (1.0, 1e-45, 1e-45, torch.inf),  # times 1 / pool^2, a 0
    ],
)
def test_weights_are_not_merged_where_that_shows(
    isa: str,
    threads: Callable[[int], None],
    pointwise: float,
    time: float,
    freq: float,
    value: float,
) -> None:
    """In all clips, in one of several, and in spans of a single one, to the same bits."""
    w = tuple(torch.full(s, v) for s, v in zip(
        ((17, 1), (17, 3), (17, 3), (17,)), (pointwise, time, freq, 0.0), strict=True
    ))  # fmt: skip
    for place in (0, 30, 61, 95):
        x = torch.zeros(3, 1, 97, 9)
        x[1, 0, place, 4] = value
        for clips in (x, x[1:2]):
            _, y = extremes.convolved(extremes.exact(clips), w, 2)
            results = []
            for count in (1, 2, 4):
                threads(count)
                got = fastsep.sep_conv2d(clips, *w)
                assert extremes.check("operator", got, y) > 0.9
                block = fastsep.sep_conv2d_block(clips, *w)
                assert extremes.check("block", block, extremes.pooled(y, 2)) > 0.9
                results.append((got.view(torch.int32), block.view(torch.int32)))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_clips_that_have_to_be_are_run_again(
    isa: str, weights: Draw, threads: Callable[[int], None], dtype: torch.dtype
) -> None:
    """Others keep their bits, and so does a clip whose NaN is in a row that no output reaches."""
    blocks = [
        fastsep.BlockParameters(*weights(1, 20, dtype), 1, 4),
        fastsep.BlockParameters(*weights(20, 8, dtype), 1, 2),
    ]
    x = random(5, 1, 55, 21, dtype=dtype)
    threads(1)
    expected = fastsep.sep_conv2d_stack(x, blocks)
    x[3, 0, 20, 5], x[4, 0, 54, 5] = torch.nan, torch.nan
    for count in (1, 2, 3):
        threads(count)
        got = fastsep.sep_conv2d_stack(x, blocks)
        for clip in (0, 1, 2, 4):
            assert torch.equal(got[clip], expected[clip])
        number = ~got[3].isnan()
        assert not number.all() and number.any()
        tolerance = 8 * torch.finfo(dtype).eps * expected[3].abs().max().item()
        torch.testing.assert_close(got[3][number], expected[3][number], rtol=0, atol=tolerance)


@pytest.mark.parametrize("pool", [None, 1, 2])
@pytest.mark.parametrize("which", ["x", "grad", "weight"])
def test_nan_goes_through_the_backward_as_in_the_reference(
    isa: str, weights: Draw, which: str, pool: int | None
) -> None:
    w = weights(5, 17, torch.float32)
    inputs = [random(2, 5, 13, 18), *w[:3], w[3].abs() + 5]  # active nearly everywhere
    if which == "x":
        inputs[0][1, 3, 6, 7] = torch.nan
    if which == "weight":
        inputs[1][4, 2] = torch.nan
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        with fastsep.use_backend("cpu" if dtype == torch.float32 else "reference"):
            if pool is None:
                y = fastsep.sep_conv2d(*leaves)
            else:
                y = fastsep.sep_conv2d_block(*leaves, pool=pool)
        grad = torch.ones_like(y)
        if which == "grad":
            grad[0, 11, 3, 4] = torch.nan
        results.append(torch.autograd.grad(y, leaves, grad))
    names = ("x", "pointwise", "time_taps", "freq_taps", "bias")
    for name, got, expected in zip(names, *results, strict=True):
        assert torch.equal(got.isnan(), expected.isnan()), name


# Memory that holds something.


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    """Every tensor PyTorch allocates starts as NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("shape", "cout", "dilation", "pool"), CASES)
def test_every_element_is_written(
    isa: str,
    nan_in_new_memory: None,
    weights: Draw,
    shape: tuple[int, int, int, int],
    cout: int,
    dilation: int,
    pool: int,
) -> None:
    leaves = [t.requires_grad_() for t in (random(*shape), *weights(shape[1], cout, torch.float32))]
    for x in (leaves[0], leaves[0].to(memory_format=torch.channels_last)):
        conv = fastsep.sep_conv2d(x, *leaves[1:], dilation=dilation)
        block = fastsep.sep_conv2d_block(x, *leaves[1:], dilation=dilation, pool=pool)
        gradients = torch.autograd.grad(conv.sum() + block.sum(), leaves)
        for t in (conv, block, *gradients):
            assert t.isfinite().all()


def test_gradients_of_an_empty_batch_are_zero(nan_in_new_memory: None, weights: Draw) -> None:
    for shape in ((0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)):
        leaves = [t.requires_grad_() for t in (random(*shape), *weights(3, 17, torch.float32))]
        for operator in (fastsep.sep_conv2d, fastsep.sep_conv2d_block):
            for gradient in torch.autograd.grad(operator(*leaves).sum(), leaves):
                assert torch.equal(gradient, torch.zeros_like(gradient))


def test_scratch_memory_is_not_read_before_it_is_written(isa: str, weights: Draw) -> None:
    """The same call before and after one that left NaN in every buffer it used."""

    def results(inputs: list[Tensor]) -> list[Tensor]:
        x, p, a, b, c = leaves = [t.requires_grad_() for t in inputs]
        y = fastsep.sep_conv2d_block(*leaves)
        deeper = fastsep.BlockParameters(*weights(21, 9, torch.float32, 7))
        with torch.no_grad():
            stack = fastsep.sep_conv2d_stack(x, [fastsep.BlockParameters(p, a, b, c), deeper])
        return [y, stack, *torch.autograd.grad(y.sum(), leaves)]

    inputs = [random(2, 6, 19, 21), *weights(6, 21, torch.float32)]
    before = results(inputs)
    for shape in ((3, 6, 47, 53), (2, 6, 19, 21)):
        results([torch.full_like(t, torch.nan) for t in (random(*shape), *inputs[1:])])
        after = results(inputs)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
