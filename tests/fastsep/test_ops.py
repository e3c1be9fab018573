"""The operators as PyTorch's citizens: schemas, compile, export, autocast, autograd."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsep

Draw = Callable[..., tuple[Any, Any, Any, Any]]  # the fixture `weights`

OPS = torch.ops.fastsep


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# opcheck: schema, fake kernel (shapes, dtypes, strides), autograd registration, AOTAutograd. The
# last is as slow as compiling, so it is asked of the layouts, not of each dtype and empty map.

CHANNELS_LAST = random(2, 6, 5, 3).permute(0, 3, 1, 2)  # (2, 3, 6, 5)
INPUTS = {
    "contiguous": random(2, 3, 6, 5),
    "channels_last": CHANNELS_LAST,
    "strided": random(2, 6, 6, 5)[:, ::2],
    "one channel, channels_last": random(2, 6, 5, 1).permute(0, 3, 1, 2),
    "one row, channels_last": random(2, 1, 5, 3).permute(0, 3, 1, 2),
    "expanded": random(1, 3, 6, 5).expand(2, 3, 6, 5),
    "no clip": random(0, 3, 6, 5),
    "no clip, channels_last": random(0, 6, 5, 3).permute(0, 3, 1, 2),
    "no channel": random(2, 0, 6, 5),
    "no frame": random(2, 3, 0, 5),
    "float64": random(2, 3, 6, 5, dtype=torch.float64),
    "bfloat16": random(2, 3, 6, 5, dtype=torch.bfloat16),
}
WITHOUT_AOT = ("test_schema", "test_autograd_registration", "test_faketensor")
WITH_AOT = (*WITHOUT_AOT, "test_aot_dispatch_dynamic")
DIFFERENTIATED = {"contiguous", "channels_last", "strided", "one channel, channels_last",
                  "one row, channels_last", "expanded", "no clip"}  # fmt: skip
INFERRED = {"contiguous", "channels_last"}
EACH_INPUT = [
    pytest.param(name, marks=pytest.mark.interpreted if name == "contiguous" else ())
    for name in INPUTS
]


@pytest.mark.parametrize("meta", range(5))
def test_a_mixture_of_devices_is_an_error(weights: Draw, meta: int) -> None:
    """PyTorch runs the fake kernel then, whose result nothing was written to."""
    args = [INPUTS["contiguous"], *weights(3, 4, torch.float32)]
    args[meta] = args[meta].to("meta")
    with pytest.raises(ValueError, match="got tensors on cpu, meta"):
        OPS.sep_conv2d_block(*args, 2, 2)
    x, *columns = args[0], *([w] for w in args[1:])
    with pytest.raises(ValueError, match="got tensors on cpu, meta"):
        OPS.sep_conv2d_stack(x, *columns, [2], [2], None, None, None, False)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", EACH_INPUT)
def test_opcheck_forward(weights: Draw, name: str, requires_grad: bool) -> None:
    with_aot = name in (DIFFERENTIATED if requires_grad else INFERRED)
    opcheck = partial(torch.library.opcheck, test_utils=WITH_AOT if with_aot else WITHOUT_AOT)
    x = INPUTS[name]
    first = weights(x.shape[1], 4, x.dtype)
    second = weights(4, 5, x.dtype, 1)
    leaves = [t.detach().requires_grad_(requires_grad) for t in (x, *first, *second)]
    x, p, a, b, c, p2, a2, b2, c2 = leaves
    opcheck(OPS.sep_conv2d.default, (x, p, a, b, None, 2))
    opcheck(OPS.sep_conv2d.default, (x, p, a, b, c, 1))
    opcheck(OPS.sep_conv2d_block.default, (x, p, a, b, c, 2, 2))
    scale, shift = random(x.shape[3], dtype=x.dtype), random(x.shape[3], dtype=x.dtype, seed=1)
    stripes = torch.tensor([[[0, 1, 3]]], dtype=torch.int32).expand(x.shape[0], 1, 3)
    stack: tuple[Any, ...] = ([p, p2], [a, a2], [b, b2], [c, c2], [2, 1], [2, 1])
    stack = (x, *stack, scale, shift, stripes)
    opcheck(OPS.sep_conv2d_stack.default, (*stack, False))


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("needs_x", [True, False])
@pytest.mark.parametrize("name", EACH_INPUT)
def test_opcheck_backward(weights: Draw, name: str, needs_x: bool) -> None:
    opcheck = partial(
        torch.library.opcheck, test_utils=WITH_AOT if name in DIFFERENTIATED else WITHOUT_AOT
    )
    x = INPUTS[name]
    p, a, b, c = weights(x.shape[1], 4, x.dtype)
    y = OPS.sep_conv2d(x, p, a, b, None, 2)
    opcheck(OPS.sep_conv2d_backward.default, (torch.ones_like(y), x, p, a, b, 2, needs_x))
    y = OPS.sep_conv2d_block(x, p, a, b, c, 2, 2)
    opcheck(
        OPS.sep_conv2d_block_backward.default,
        (torch.ones_like(y), x, p, a, b, c, 2, 2, needs_x),
    )


# torch.compile.


@pytest.fixture
def no_recompiles() -> Iterator[None]:
    """Fails where a call after the first needs compiling again."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def conv(x: Tensor, *w: Tensor) -> Tensor:
    return fastsep.sep_conv2d(x, *w, dilation=3)


def conv_without_bias(x: Tensor, *w: Tensor) -> Tensor:
    return fastsep.sep_conv2d(x, *w[:3])


def block(x: Tensor, *w: Tensor) -> Tensor:
    return fastsep.sep_conv2d_block(x, *w)


def stack(x: Tensor, *w: Tensor) -> Tensor:
    stripes = torch.tensor([[[0, 1, 3], [1, 2, 4]]], dtype=torch.int32).expand(len(x), 2, 3)
    affine = (torch.full((x.shape[3],), 0.5), torch.full((x.shape[3],), 0.1))
    pointwise, time, freq, bias = w
    blocks = [
        fastsep.BlockParameters(pointwise, time, freq, bias, dilation=2, pool=2),
        fastsep.BlockParameters(torch.full((7, 7), 0.1), time, freq, bias, dilation=1, pool=1),
    ]
    return fastsep.sep_conv2d_stack(x, blocks, affine=affine, stripes=stripes)


@pytest.mark.parametrize("function", [conv, conv_without_bias, block, stack])
def test_compiled_functions_with_any_batch(
    backend: str,
    no_recompiles: None,
    weights: Draw,
    function: Callable[..., Tensor],
) -> None:
    """Forward and backward in one graph that serves every batch size."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=None)
    w = [t.requires_grad_() for t in weights(3, 7, torch.float32)]
    for clips in (2, 3, 5):
        x = random(clips, 3, 9, 8).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        y, expected = compiled(x, *w), function(x, *w)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        used = [x, *w[:3]]
        for got, wanted in zip(
            torch.autograd.grad(y.sum(), used),
            torch.autograd.grad(expected.sum(), used),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("function", [conv, block, stack])
def test_compiled_without_gradients(
    backend: str,
    no_recompiles: None,
    weights: Draw,
    function: Callable[..., Tensor],
) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x, w = random(2, 3, 9, 8), weights(3, 7, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, *w), function(x, *w))
    x = x.contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    with torch.inference_mode():
        y, expected = compiled(x, *w), function(x, *w)
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()


def layers() -> dict[str, Callable[[], nn.Module]]:
    block = fastsep.SepConvBlock
    return {
        "SepConv2d": lambda: fastsep.SepConv2d(3, 8, bias=True),
        "SepConvBlock": lambda: block(3, 8),
        "SepConvStack": lambda: fastsep.SepConvStack([block(3, 8), block(8, 5, dilation=1)]),
        "folded": lambda: fastsep.fold_batchnorm(nn.Sequential(block(3, 8), block(8, 4))),
    }


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize(
    "training",
    [pytest.param(True, id="train", marks=pytest.mark.interpreted), pytest.param(False, id="eval")],
)
@pytest.mark.parametrize("make", layers().values(), ids=layers())
def test_compiled_modules(
    no_recompiles: None, make: Callable[[], nn.Module], training: bool
) -> None:
    torch.manual_seed(0)
    module = make().train(training)
    twin = make()
    twin.load_state_dict(module.state_dict())
    twin.train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for clips in (2, 4):
        x = random(clips, 3, 12, 9)
        torch._dynamo.mark_dynamic(x, 0)
        y, expected = compiled(x), twin(x)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
    for got, wanted in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()))


def test_compiled_module_follows_its_weights(backend: str, no_recompiles: None) -> None:
    """Folding is part of the graph: nothing of it is baked in."""
    module = fastsep.SepConvStack([fastsep.SepConvBlock(1, 6), fastsep.SepConvBlock(6, 4)]).eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random(2, 1, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
        before = module(x)
        for parameter in module.parameters():
            parameter.mul_(1.5)
        torch.testing.assert_close(compiled(x), module(x))
        assert not torch.equal(module(x), before)


@pytest.mark.usefixtures("cpu_kernels")
def test_inductor_trains_a_channels_last_model() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), fastsep.SepConvBlock(4, 8), nn.Sigmoid())
    x = random(2, 2, 9, 8).contiguous(memory_format=torch.channels_last)
    expected = model(x)
    wanted = torch.autograd.grad(expected.sum(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True)
    got = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
    torch.testing.assert_close(compiled(x), expected)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=1e-5
        )  # inductor reorders batch norm's sums
    torch._dynamo.reset()


def test_export(backend: str) -> None:
    stack = fastsep.SepConvStack([fastsep.SepConvBlock(1, 6), fastsep.SepConvBlock(6, 4)]).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(stack, (random(2, 1, 9, 8),), dynamic_shapes=({0: batch},))
    for clips in (1, 2, 5):
        x = random(clips, 1, 9, 8, seed=clips)
        torch.testing.assert_close(program.module()(x), stack(x))


# Autocast.


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_once_as_a_convolution_does(
    backend: str, weights: Draw, dtype: torch.dtype
) -> None:
    """The result and gradients are those of cast inputs; gradients arrive in float32."""
    leaves = [t.requires_grad_() for t in (random(2, 3, 9, 8), *weights(3, 7, torch.float32))]
    calls: list[Callable[..., Tensor]] = [
        fastsep.sep_conv2d,
        fastsep.sep_conv2d_block,
        lambda x, *w: fastsep.sep_conv2d_stack(x, [fastsep.BlockParameters(*w)]),
    ]
    for call in calls:
        expected = call(*[t.to(dtype) for t in leaves])
        with torch.autocast("cpu", dtype=dtype):
            y = call(*leaves)
        assert y.dtype == dtype
        assert torch.equal(y, expected)
        for got, wanted in zip(
            torch.autograd.grad(y.float().sum(), leaves),
            torch.autograd.grad(expected.float().sum(), leaves),
            strict=True,
        ):
            assert got.dtype == torch.float32
            assert torch.equal(got, wanted)


@pytest.mark.interpreted
def test_autocast_of_a_stack_with_affine(backend: str, weights: Draw) -> None:
    x, w = random(2, 3, 9, 8), weights(3, 7, torch.float32)
    affine = (random(8, seed=1), random(8, seed=2))
    stripes = torch.tensor([[[0, 2, 4]], [[1, 0, 3]]], dtype=torch.int32)
    half: list[Any] = [t.bfloat16() for t in (x, *w, *affine)]
    expected = fastsep.sep_conv2d_stack(
        half[0],
        [fastsep.BlockParameters(*half[1:5])],
        affine=(half[5], half[6]),
        stripes=stripes,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fastsep.sep_conv2d_stack(
            x, [fastsep.BlockParameters(*w)], affine=affine, stripes=stripes
        )
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


@pytest.mark.interpreted
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_of_modules(backend: str, training: bool) -> None:
    torch.manual_seed(0)
    stack = fastsep.SepConvStack([fastsep.SepConvBlock(1, 8), fastsep.SepConvBlock(8, 4)])
    stack.train(training)
    x = random(2, 1, 24, 20)
    exact = stack(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = stack(x)
    assert y.dtype == torch.bfloat16
    # three roundings to 8 bits a block (weights, convolution, batch norm), averaged over channels
    assert (y - exact).abs().mean() < 6 * 2**-8 * exact.abs().max()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in stack.parameters())


@pytest.mark.interpreted
def test_autocast_in_a_compiled_function(backend: str, no_recompiles: None, weights: Draw) -> None:
    def step(x: Tensor, *w: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fastsep.sep_conv2d_block(x, *w)

    leaves = [t.requires_grad_() for t in (random(2, 3, 9, 8), *weights(3, 7, torch.float32))]
    y = torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, step(*leaves))
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in leaves)


# Autograd's corners.


@pytest.mark.interpreted
@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("function", [conv, block, stack])
def test_double_backward_is_refused(weights: Draw, function: Callable[..., Tensor]) -> None:
    leaves = [t.requires_grad_() for t in (random(2, 3, 9, 8), *weights(3, 7, torch.float32))]
    (gradient,) = torch.autograd.grad(function(*leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*use_backend"):
        gradient.square().sum().backward()


@pytest.mark.interpreted
@pytest.mark.parametrize("function", [conv, block, stack])
def test_input_changed_before_the_backward_is_noticed(
    backend: str, weights: Draw, function: Callable[..., Tensor]
) -> None:
    x = random(2, 3, 9, 8)
    w = [t.requires_grad_() for t in weights(3, 7, torch.float32)]
    y = function(x, *w)
    with torch.no_grad():
        w[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.interpreted
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 3, 4, 4), (2, 3, 9, 8)])
def test_outputs_never_alias_inputs(
    backend: str, weights: Draw, shape: tuple[int, int, int, int]
) -> None:
    inputs = [random(*shape), *weights(shape[1], shape[1], torch.float32)]
    affine = (torch.ones(shape[3]), torch.zeros(shape[3]))
    copies = [t.clone() for t in inputs]
    leaves = [t.requires_grad_() for t in inputs]
    _, p, a, b, c = leaves
    outputs: list[Any] = []
    for grad_mode in (True, False):
        with torch.set_grad_enabled(grad_mode):
            blocks = [fastsep.BlockParameters(p, a, b, c, dilation=1, pool=1)]
            outputs += [
                fastsep.sep_conv2d(*leaves[:4]),
                fastsep.sep_conv2d(*leaves),
                fastsep.sep_conv2d_block(*leaves, pool=1),
                fastsep.sep_conv2d_stack(leaves[0], blocks),
                fastsep.sep_conv2d_stack(leaves[0], blocks, affine=affine),
            ]
    grad = torch.ones_like(outputs[0])
    outputs += torch.autograd.grad(outputs[0], leaves[:4], grad)
    memory = [t.untyped_storage().data_ptr() for t in (*leaves, *affine, grad, *outputs)]
    assert len(set(memory)) == len(memory)
    assert all(torch.equal(t, copy) for t, copy in zip(leaves, copies, strict=True))


@pytest.mark.interpreted
@pytest.mark.parametrize("gradients", [True, False])
def test_channels_last_is_kept_by_a_stack(backend: str, weights: Draw, gradients: bool) -> None:
    x = random(2, 3, 9, 8).contiguous(memory_format=torch.channels_last)
    w = [t.requires_grad_(gradients) for t in weights(3, 7, torch.float32)]
    for y in (conv(x, *w), block(x, *w), stack(x, *w)):
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("widths", [(3, 1, 4), (3, 4, 1, 5), (3, 1, 1, 2)])
def test_channels_last_is_kept_past_one_channel(
    backend: str, weights: Draw, widths: tuple[int, ...], gradients: bool
) -> None:
    """Whose map is contiguous either way."""
    x = random(2, 3, 9, 8).contiguous(memory_format=torch.channels_last)
    blocks = [
        fastsep.BlockParameters(
            *(t.requires_grad_(gradients) for t in weights(a, b, x.dtype)), 1, 1
        )
        for a, b in pairwise(widths)
    ]
    y = fastsep.sep_conv2d_stack(x, blocks)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
