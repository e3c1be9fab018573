"""A stack on masked copies: the bits of the copies computed one by one."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import fastsep
from fastsep import reference
from fastsep.checks import BlockParameters

Draw = Callable[..., tuple[Any, Any, Any, Any]]  # the fixture `weights`


@pytest.fixture(autouse=True)
def cpu_backend(cpu_kernels: None) -> Iterator[None]:
    with fastsep.use_backend("cpu"), torch.inference_mode():
        yield


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(weights: Draw, *widths: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    pairs = itertools.pairwise((1, *widths))
    return [BlockParameters(*weights(a, b, dtype, i)) for i, (a, b) in enumerate(pairs)]


def one_by_one(x: Tensor, blocks: Any, stripes: Tensor, **options: Any) -> Tensor:
    """(N, K, C, T', F') of each clip's masked copies as a batch."""
    maps = [
        fastsep.sep_conv2d_stack(
            clip.expand(len(masks), -1, -1, -1), blocks, stripes=masks, **options
        )
        for clip, masks in zip(x, stripes, strict=True)
    ]
    return torch.stack(maps)


def check(x: Tensor, blocks: Any, stripes: Tensor, **options: Any) -> Tensor:
    """The maps, and what heads make of them: both the copies' own."""
    y = fastsep.sep_conv2d_masked_stack(x, blocks, stripes, **options)
    assert torch.equal(y, one_by_one(x, blocks, stripes, **options))
    for layers in heads(y.shape[2], x.dtype) if y.shape[3] and y.shape[4] else ():
        outputs = fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=layers, **options)
        expected = fastsep.global_pool_mlp(y.flatten(0, 1), layers)
        assert torch.equal(outputs, expected.unflatten(0, y.shape[:2]))
    return y


def heads(channels: int, dtype: torch.dtype) -> list[Any]:
    """Pooling alone; one layer; two, of which the first is wider than what it takes."""
    layers = [
        (random(b, a, seed=a, dtype=dtype), random(b, seed=b, dtype=dtype))
        for a, b in ((channels, 5), (channels, channels + 19), (channels + 19, 10))
    ]
    return [(), layers[:1], layers[1:]]


def drawn(clips: int, copies: int, frames: int, bins: int, wide: int, seed: int) -> Tensor:
    """Masks of two stripes an axis, as of SpecAugment."""
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([frames, frames, bins, bins])
    width = (torch.rand(clips, copies, 4, generator=rng) * sizes.clamp(max=wide)).long()
    start = (torch.rand(clips, copies, 4, generator=rng) * (sizes - width)).long()
    axis = torch.tensor([0, 0, 1, 1]).expand_as(start)
    return torch.stack([axis, start, start + width], dim=-1)


# Overlapping, at both borders, beyond them, empty, turned round, full, of no axis, none.
ADVERSARIAL = [
    [[0, 0, 3], [0, 2, 7], [1, 0, 1], [1, 1, 4]],
    [[0, -5, 2], [0, 30, 99], [1, -1, 1], [1, 20, 2**31 - 1]],
    [[0, 4, 4], [1, 6, 6], [0, 9, 5], [1, 7, 3]],
    [[0, 0, 1000], [1, 3, 9], [0, 5, 6], [1, 0, 0]],
    [[1, 0, 1000], [0, 3, 9], [0, 5, 6], [1, 0, 0]],
    [[2, 0, 9], [-1, 0, 9], [0, 11, 12], [1, 11, 12]],
    [[0, 1, 2], [0, 3, 4], [0, 5, 6], [0, 7, 8]],
    [[1, 1, 2], [1, 3, 4], [1, 5, 6], [1, 7, 8]],
    [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
]


@pytest.mark.parametrize("threads_", [1, 2])
@pytest.mark.parametrize(("frames", "bins"), [(37, 29), (16, 16), (48, 64), (19, 70), (65, 33)])
def test_each_instruction_set(
    isa: str, weights: Draw, threads: Callable[[int], None], frames: int, bins: int, threads_: int
) -> None:
    threads(threads_)
    blocks = network(weights, 17, 33, 20, 9)
    affine = random(bins, seed=1), random(bins, seed=2)
    x = random(3, 1, frames, bins)
    check(x, blocks, torch.tensor(ADVERSARIAL).expand(3, -1, -1, -1), affine=affine)
    check(x, blocks, drawn(3, 7, frames, bins, 20, 3))


@given(
    frames=st.integers(16, 90),
    bins=st.integers(4, 140),
    blocks=st.integers(1, 4),
    copies=st.integers(0, 12),
    wide=st.integers(1, 140),
    seed=st.integers(0, 2**16),
)
@example(frames=431, bins=256, blocks=4, copies=45, wide=32, seed=0)
@example(frames=430, bins=255, blocks=4, copies=1, wide=128, seed=1)
@example(frames=17, bins=129, blocks=3, copies=3, wide=60, seed=2)
def test_any_masks_and_shapes(
    weights: Draw, frames: int, bins: int, blocks: int, copies: int, wide: int, seed: int
) -> None:
    widths = [1 + (seed >> 4 * i) % 16 * 3 for i in range(blocks)]
    widths = [max(2, width) for width in widths]
    clips = 1 + seed % 2
    x = random(clips, 1, frames, bins, seed=seed)
    stripes = drawn(clips, copies, frames, bins, wide, seed)
    stack = network(weights, *widths)
    y = check(x, stack, stripes)
    side = 2**blocks
    assert y.shape == (clips, copies, widths[-1], frames // side, bins // side)


def kinds(stripes: Tensor, frames: int, bins: int, blocks: int) -> list[tuple[Tensor, Tensor]]:
    """The classification that the kernel does row by row, in plain PyTorch: of each block's output
    whether something it depends on is masked, and whether something is not, (T, F) each."""
    ones = torch.ones(1, 1, frames, bins)
    unmasked = reference.load(ones, None, None, stripes[None])
    sides = [(1 - unmasked)[0, 0] > 0, unmasked[0, 0] > 0]
    found = []
    for _ in range(blocks):
        for i, side in enumerate(sides):
            reached = torch.zeros_like(side)
            padded = torch.nn.functional.pad(side, (2, 2, 2, 2))  # outside is of neither kind
            rows, columns = side.shape
            for t, f in ((0, 2), (4, 2), (2, 0), (2, 4), (2, 2)):
                reached |= padded[t : t + rows, f : f + columns]
            pooled = torch.nn.functional.max_pool2d(reached[None].float(), 2)
            sides[i] = pooled[0] > 0
        found.append((sides[0], sides[1]))
    return found


def test_what_is_shared_is_what_the_definition_says(weights: Draw) -> None:
    """Where nothing is masked a copy has the clip's values, where all is, those of zeros, in all
    blocks; and under the report's masks that leaves a sixth of the arithmetic."""
    frames, bins = 431, 256
    stripes = drawn(1, 40, frames, bins, 128, 0)[0]
    stripes[:, 2:] = drawn(1, 40, frames, bins, 32, 1)[0][:, 2:]
    blocks = network(weights, 64, 128, 128, 128)
    x = random(1, 1, frames, bins)
    shares, copies = [], 4
    for stripe in stripes:
        found = kinds(stripe, frames, bins, 4)
        shares.append([(masked & rest).float().mean().item() for masked, rest in found])
    for depth in range(1, 5):
        maps = fastsep.sep_conv2d_stack(x, blocks[:depth])[0]
        zeros = fastsep.sep_conv2d_stack(torch.zeros_like(x), blocks[:depth])[0]
        y = fastsep.sep_conv2d_masked_stack(x, blocks[:depth], stripes[None, :copies])[0]
        for k in range(copies):
            masked, rest = kinds(stripes[k], frames, bins, depth)[-1]
            assert torch.equal(y[k][:, ~masked], maps[:, ~masked])
            assert torch.equal(y[k][:, ~rest], zeros[:, ~rest])
    of_block = torch.tensor(shares).mean(0)
    products = torch.tensor([451.0, 224.0, 56.0])  # MFLOP, SPEC 2
    taps = torch.tensor([70.6, 35.0, 9.0, 2.0])
    share = (products * of_block[:3]).sum() + (taps * of_block).sum()
    assert share < 0.2 * 848


@pytest.mark.parametrize("copies", [35, 80, 200])
def test_many_copies_go_in_groups(weights: Draw, copies: int) -> None:
    blocks = network(weights, 64, 128, 128)
    x = random(1, 1, 48, 64)
    check(x, blocks, drawn(1, copies, 48, 64, 40, copies))


@pytest.mark.parametrize("seed", range(6))
def test_copies_that_share_edges(isa: str, weights: Draw, seed: int) -> None:
    """Stripes of bins that begin or end where those of other copies do, or are the same, more often
    than twins are remembered; with stripes of frames in some copies, here and there."""
    frames, bins, copies = 70, 100, 24
    rng = torch.Generator().manual_seed(seed)
    edges = torch.tensor([0, 7, 30, 33, 61, 100])
    ends = edges[torch.randint(6, (1, copies, 2, 2), generator=rng)].sort(-1).values
    stripes = drawn(1, copies, frames, bins, 9, seed)
    stripes[:, :, 2:, 1:] = ends
    stripes[:, ::3, :2, 1:] = 0
    check(random(1, 1, frames, bins), network(weights, 10, 18, 7), stripes)


def test_clips_copies_and_threads_change_no_bit(
    weights: Draw, threads: Callable[[int], None]
) -> None:
    blocks, stripes = network(weights, 24, 40, 16), drawn(5, 9, 50, 60, 30, 0)
    x = random(5, 1, 50, 60)
    threads(2)
    whole = fastsep.sep_conv2d_masked_stack(x, blocks, stripes)
    threads(1)
    assert torch.equal(fastsep.sep_conv2d_masked_stack(x, blocks, stripes), whole)
    for n, k in ((0, 3), (4, 8)):
        y = fastsep.sep_conv2d_masked_stack(x[n, None], blocks, stripes[n, None, k, None])
        assert torch.equal(y[0, 0], whole[n, k])


def test_layouts_of_the_input(weights: Draw) -> None:
    blocks, stripes = network(weights, 20, 12), drawn(2, 3, 30, 40, 9, 0)
    x = random(2, 1, 30, 40)
    expected = fastsep.sep_conv2d_masked_stack(x, blocks, stripes)
    strided = random(2, 1, 60, 80)
    strided[:, :, ::2, ::2] = x
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (strided[:, :, ::2, ::2], transposed):
        assert torch.equal(fastsep.sep_conv2d_masked_stack(other, blocks, stripes), expected)
    assert expected.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


OTHERS = {
    "dilation": lambda w: [BlockParameters(*w(1, 6, torch.float32), 1, 2)],
    "pooling": lambda w: [BlockParameters(*w(1, 6, torch.float32), 2, 3)],
    "no pooling": lambda w: [BlockParameters(*w(1, 6, torch.float32), 2, 1)],
    "lone later": lambda w: [BlockParameters(*w(1, 1, torch.float32)),
                             BlockParameters(*w(1, 5, torch.float32))],
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_other_geometries_are_computed_copy_by_copy(weights: Draw, other: str) -> None:
    check(random(2, 1, 20, 24), OTHERS[other](weights), drawn(2, 4, 20, 24, 9, 0))


def test_several_input_channels(weights: Draw) -> None:
    blocks = [BlockParameters(*weights(3, 6, torch.float32))]
    check(random(2, 3, 20, 24), blocks, drawn(2, 4, 20, 24, 9, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(weights: Draw, dtype: torch.dtype) -> None:
    blocks = network(weights, 18, 10, dtype=dtype)
    check(random(2, 1, 20, 24, dtype=dtype), blocks, drawn(2, 4, 20, 24, 9, 0))


def test_compute_in_bfloat16(isa: str, weights: Draw) -> None:
    blocks = network(weights, 33, 40, 17)
    stripes = drawn(2, 9, 45, 51, 25, 0)
    check(random(2, 1, 45, 51), blocks, stripes, compute="bf16")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_values_that_are_not_numbers(weights: Draw, value: float) -> None:
    """Masked away in some copies; of other clips nothing changes."""
    blocks = network(weights, 18, 10)
    x, stripes = random(3, 1, 20, 24), drawn(3, 6, 20, 24, 9, 0)
    stripes[1, :3, 0] = torch.tensor([0, 6, 9])
    before = fastsep.sep_conv2d_masked_stack(x, blocks, stripes)
    x[1, 0, 7, 5] = value
    y = fastsep.sep_conv2d_masked_stack(x, blocks, stripes)
    torch.testing.assert_close(y, one_by_one(x, blocks, stripes), rtol=0, atol=0, equal_nan=True)
    for layers in heads(10, x.dtype):
        outputs = fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=layers)
        expected = fastsep.global_pool_mlp(y.flatten(0, 1), layers).unflatten(0, (3, 6))
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(y[[0, 2]], before[[0, 2]]) and torch.equal(y[1, :3], before[1, :3])


@pytest.mark.parametrize("shape", [(0, 4, 2, 3), (2, 0, 2, 3), (2, 3, 0, 3)])
def test_nothing_to_do(weights: Draw, shape: tuple[int, ...]) -> None:
    blocks = network(weights, 6, 5)
    x = random(shape[0], 1, 20, 24)
    y = fastsep.sep_conv2d_masked_stack(x, blocks, torch.zeros(shape, dtype=torch.int64))
    assert y.shape == (*shape[:2], 5, 5, 6)
    layers = heads(5, x.dtype)[-1]
    stripes = torch.zeros(shape, dtype=torch.int64)
    for name in ("cpu", "reference"):
        with fastsep.use_backend(name):
            outputs = fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=layers)
        assert outputs.shape == (*shape[:2], 10)
    if y.numel():
        assert torch.equal(y[:, 0], fastsep.sep_conv2d_stack(x, blocks))
    with fastsep.use_backend("reference"):
        again = fastsep.sep_conv2d_masked_stack(x, blocks, torch.zeros(shape, dtype=torch.int64))
    torch.testing.assert_close(again, y, rtol=1e-4, atol=1e-5)


def test_maps_too_small_for_the_stack(weights: Draw) -> None:
    y = fastsep.sep_conv2d_masked_stack(
        random(1, 1, 3, 8), network(weights, 6, 5), torch.zeros(1, 2, 1, 3, dtype=torch.int32)
    )
    assert y.shape == (1, 2, 5, 0, 2)
    for name in ("cpu", "reference"):
        with fastsep.use_backend(name), pytest.raises(ValueError, match=r"at least one frame"):
            fastsep.sep_conv2d_masked_stack(
                random(1, 1, 3, 8), network(weights, 6, 5), torch.zeros(1, 2, 1, 3).int(), head=()
            )


@pytest.mark.parametrize("backend_", ["reference", "cpu"])
def test_gradients_go_copy_by_copy(weights: Draw, backend_: str) -> None:
    with torch.inference_mode(False), fastsep.use_backend(backend_):
        x = random(2, 1, 20, 24).requires_grad_()
        blocks, stripes = network(weights, 6, 5), drawn(2, 3, 20, 24, 9, 0)
        y = fastsep.sep_conv2d_masked_stack(x, blocks, stripes)
        assert y.requires_grad
        grad = random(*y.shape, seed=5)
        (dx,) = torch.autograd.grad(y, x, grad)
        copies = x.repeat_interleave(3, 0)
        alone = fastsep.sep_conv2d_stack(copies, blocks, stripes=stripes.flatten(0, 1))
        torch.testing.assert_close(y.flatten(0, 1), alone, rtol=1e-4, atol=1e-5)
        (expected,) = torch.autograd.grad(alone, x, grad.flatten(0, 1), retain_graph=True)
        torch.testing.assert_close(dx, expected, rtol=1e-4, atol=1e-4)
        layers = heads(5, x.dtype)[-1]
        outputs = fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=layers)
        (dx,) = torch.autograd.grad(outputs.sum(), x)
        (expected,) = torch.autograd.grad(fastsep.global_pool_mlp(alone, layers).sum(), x)
        torch.testing.assert_close(dx, expected, rtol=1e-4, atol=1e-3)


def test_opcheck_and_compile(weights: Draw) -> None:
    with torch.inference_mode(False):
        x, blocks = random(2, 1, 20, 24), network(weights, 6, 5)
        stripes = drawn(2, 3, 20, 24, 9, 0).int()
        columns = [list(column) for column in zip(*blocks, strict=True)]
        scale, shift = random(24, seed=1), random(24, seed=2)
        op = torch.ops.fastsep.sep_conv2d_masked_stack.default
        layers = [list(column) for column in zip(*heads(5, x.dtype)[-1], strict=True)]
        torch.library.opcheck(op, (x, *columns, scale, shift, stripes, False, False, [], []))
        torch.library.opcheck(op, (x, *columns, scale, shift, stripes, False, True, [], []))
        torch.library.opcheck(op, (x, *columns, None, None, stripes, False, True, *layers))
        nothing = x[:0], *columns, None, None, stripes[:0], False
        torch.library.opcheck(op, (*nothing, False, [], []))
        torch.library.opcheck(op, (*nothing, True, *layers))

        for head in (None, heads(5, x.dtype)[-1]):

            def call(x: Tensor, stripes: Tensor, head: Any = head) -> Tensor:
                return fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=head)

            compiled = torch.compile(call, fullgraph=True)
            assert torch.equal(compiled(x, stripes), call(x, stripes))


def test_transforms_run_the_reference(weights: Draw) -> None:
    with torch.inference_mode(False):
        blocks, stripes = network(weights, 6, 5), drawn(1, 3, 20, 24, 9, 0)
        x = random(4, 1, 1, 20, 24)
        y = torch.func.vmap(lambda x: fastsep.sep_conv2d_masked_stack(x, blocks, stripes))(x)
        for mapped, clip in zip(y, x, strict=True):
            expected = fastsep.sep_conv2d_masked_stack(clip, blocks, stripes)
            torch.testing.assert_close(mapped, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend_", ["reference", "cpu"])
def test_autocast(weights: Draw, backend_: str) -> None:
    blocks, stripes = network(weights, 6, 5), drawn(2, 3, 20, 24, 9, 0)
    x = random(2, 1, 20, 24)
    layers = heads(5, x.dtype)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16), fastsep.use_backend(backend_):
        y = check(x, blocks, stripes)
        outputs = fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=layers)
    assert y.dtype == outputs.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("stripes", "error", "words"),
    [
        (torch.zeros(2, 2, 3, dtype=torch.int64), ValueError, r"\(N, K, S, 3\)"),
        (torch.zeros(1, 4, 2, 3, dtype=torch.int64), ValueError, r"\(2, K, S, 3\)"),
        (torch.zeros(2, 4, 2, 2, dtype=torch.int64), ValueError, r"got \(2, 4, 2, 2\)"),
        (torch.zeros(2, 4, 2, 3), TypeError, "integers"),
        ([[[0, 1, 2]]], TypeError, "a tensor, got list"),
    ],
)
def test_stripes_that_are_none(
    weights: Draw, stripes: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fastsep.sep_conv2d_masked_stack(random(2, 1, 20, 24), network(weights, 6), stripes)


def test_weights_that_do_not_fit(weights: Draw) -> None:
    blocks = [*network(weights, 6), BlockParameters(*weights(7, 5, torch.float32))]
    with pytest.raises(ValueError, match=r"blocks\[1\].*pointwise"):
        fastsep.sep_conv2d_masked_stack(
            random(1, 1, 20, 24), blocks, torch.zeros(1, 1, 1, 3, dtype=torch.int32)
        )


@pytest.mark.parametrize("backend_", ["reference", "cpu"])
def test_heads_that_do_not_fit(weights: Draw, backend_: str) -> None:
    x, blocks = random(1, 1, 20, 24), network(weights, 6, 5)
    stripes = torch.zeros(1, 1, 1, 3, dtype=torch.int32)
    layer = random(3, 5), random(3)
    with fastsep.use_backend(backend_):
        for head, words in (
            ([(random(3, 6), random(3))], r"layers\[0\] weight"),
            ([layer, layer], r"layers\[1\] weight"),
            ([(random(3, 5), random(4))], r"layers\[0\] bias"),
        ):
            with pytest.raises(ValueError, match=words):
                fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=head)
        with pytest.raises(TypeError, match="pair of tensors"):
            fastsep.sep_conv2d_masked_stack(x, blocks, stripes, head=[random(3, 5)])


class TestModule:
    @pytest.fixture
    def stack(self) -> fastsep.SepConvStack:
        with torch.inference_mode(False), torch.no_grad():
            torch.manual_seed(0)
            blocks = [fastsep.SepConvBlock(1, 12), fastsep.SepConvBlock(12, 7)]
            stack = fastsep.SepConvStack(blocks)
            stack(random(4, 1, 20, 24, seed=9))
        return stack.eval()

    def test_is_the_stack_on_the_copies(self, stack: fastsep.SepConvStack) -> None:
        x, stripes = random(2, 1, 20, 24), drawn(2, 5, 20, 24, 9, 0)
        affine = random(24, seed=1), random(24, seed=2)
        y = stack.masked(x, stripes, affine)
        for clip, masks, of_clip in zip(x, stripes, y, strict=True):
            copies = clip.expand(5, -1, -1, -1)
            assert torch.equal(of_clip, stack(copies, affine, masks))

    def test_honours_hooks(self, stack: fastsep.SepConvStack) -> None:
        x, stripes = random(2, 1, 20, 24), drawn(2, 5, 20, 24, 9, 0)
        plain = stack.masked(x, stripes)
        stack[0].register_forward_hook(lambda module, args, output: 2 * output)
        copies = x.repeat_interleave(5, 0)
        y = stack.masked(x, stripes)
        assert torch.equal(y.flatten(0, 1), stack(copies, stripes=stripes.flatten(0, 1)))
        assert not torch.equal(y, plain)
