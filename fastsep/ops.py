"""The operators as PyTorch sees them: schemas, fake kernels, autograd, autocast.

The kernels are elsewhere: csrc registers the CPU's, the end of this file the GPU's. Callers go
through `fastsep.functional`, which checks its arguments.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from fastsep.dispatch import (
    autocast,
    below_autograd,
    needs_gradients,
    operators,
    tensors_of,
    without,
)
from fastsep.kernels import KERNELS, gpu_kernels, interpreted, vector_bytes
from fastsep.layouts import in_format_of, new_map
from fastsep.reference import bin_statistics, global_pool_mlp, load, log_mel

_WEIGHTS = "Tensor x, Tensor pointwise, Tensor time_taps, Tensor freq_taps"
_GRADIENTS = "(Tensor, Tensor, Tensor, Tensor, Tensor)"  # of x, pointwise, both taps and bias

library = Library("fastsep", "DEF")
library.define(f"sep_conv2d({_WEIGHTS}, Tensor? bias, int dilation) -> Tensor")
library.define(
    f"sep_conv2d_backward(Tensor grad, {_WEIGHTS}, int dilation, bool needs_x) -> {_GRADIENTS}"
)
library.define(f"sep_conv2d_block({_WEIGHTS}, Tensor bias, int dilation, int pool) -> Tensor")
library.define(
    f"sep_conv2d_block_backward(Tensor grad, {_WEIGHTS}, Tensor bias, int dilation, int pool, "
    f"bool needs_x) -> {_GRADIENTS}"
)
library.define(
    "sep_conv2d_stack(Tensor x, Tensor[] pointwise, Tensor[] time_taps, Tensor[] freq_taps, "
    "Tensor[] bias, int[] dilation, int[] pool, Tensor? scale, Tensor? shift, Tensor? stripes, "
    "bool bf16) -> Tensor"
)
# stripes (N, K, S, 3) -> (N K, C, T', F'), channels_last; with the head, (N K, C or outputs)
library.define(
    "sep_conv2d_masked_stack(Tensor x, Tensor[] pointwise, Tensor[] time_taps, "
    "Tensor[] freq_taps, Tensor[] bias, int[] dilation, int[] pool, Tensor? scale, Tensor? shift, "
    "Tensor stripes, bool bf16, bool head, Tensor[] head_weight, Tensor[] head_bias) -> Tensor"
)
_BN_BLOCKS = (
    "Tensor[] pointwise, Tensor[] time_taps, Tensor[] freq_taps, Tensor[] gamma, Tensor[] beta"
)
_BN_GEOMETRY = (
    "float[] eps, int[] dilation, int[] pool, Tensor? scale, Tensor? shift, Tensor? stripes"
)
# mean, var: frozen statistics (C,), or (0,) for the batch's. statistics: mean and biased variance
# as used, float64 (2, C) a block. saved: two tensors a block for the backward pass.
library.define(
    f"sep_conv2d_bn_stack(Tensor x, {_BN_BLOCKS}, Tensor[] mean, Tensor[] var, {_BN_GEOMETRY}, "
    "bool save) -> (Tensor y, Tensor[] statistics, Tensor[] saved)"
)
# needs: of each block, + 1 for pointwise's gradient, + 2 for the others'. gradients: five a block,
# those of its tensors; (0,) where nobody asks.
library.define(
    f"sep_conv2d_bn_stack_backward(Tensor grad, Tensor x, {_BN_BLOCKS}, Tensor[] statistics, "
    f"int[] frozen, {_BN_GEOMETRY}, Tensor[] saved, int[] needs, bool needs_x, bool needs_affine) "
    "-> (Tensor dx, Tensor[] gradients, Tensor d_scale, Tensor d_shift)"
)
library.define("global_pool_mlp(Tensor x, Tensor[] weight, Tensor[] bias) -> Tensor")
# Mean and biased variance of each bin, over all else: float64 (2, F).
library.define("bin_statistics(Tensor x) -> Tensor")
library.define(
    "log_mel(Tensor waveform, Tensor window, int hop, Tensor bands, Tensor weights) -> Tensor"
)


# Shapes and layouts, for tracing.


def _fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers a fake kernel. PyTorch also runs it if just some of the tensors are on "meta"."""

    def register(kernel: Callable[..., Any]) -> None:
        def on_one_device(*args: Any) -> Any:
            devices = {tensor.device for tensor in tensors_of(args)}
            if len(devices) > 1:
                raise ValueError(f"{name} got tensors on {', '.join(sorted(map(str, devices)))}")
            return kernel(*args)

        torch.library.register_fake(f"fastsep::{name}", on_one_device, lib=library)

    return register


@_fake("sep_conv2d")
def _(x: Tensor, pointwise: Tensor, *_: Any) -> Tensor:
    return new_map(x, (x.shape[0], pointwise.shape[0], *x.shape[2:]))


@_fake("sep_conv2d_block")
def _(
    x: Tensor, pointwise: Tensor, a: Tensor, b: Tensor, bias: Tensor, dilation: int, pool: int
) -> Tensor:
    return new_map(x, (x.shape[0], pointwise.shape[0], x.shape[2] // pool, x.shape[3] // pool))


@_fake("sep_conv2d_stack")
def _(x: Tensor, pointwise: list[Tensor], *args: Any) -> Tensor:
    *_, pool, _scale, _shift, _stripes, _bf16 = args
    return new_map(x, (x.shape[0], pointwise[-1].shape[0], *_pooled(x, pool)))


@_fake("sep_conv2d_masked_stack")
def _(x: Tensor, pointwise: list[Tensor], *args: Any) -> Tensor:
    *_, pool, _scale, _shift, stripes, _bf16, head, head_weight, _head_bias = args
    copies, channels = x.shape[0] * stripes.shape[1], pointwise[-1].shape[0]
    if head:
        return x.new_empty(copies, head_weight[-1].shape[0] if head_weight else channels)
    shape = copies, channels, *_pooled(x, pool)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _pooled(x: Tensor, pool: list[int]) -> tuple[int, int]:
    """Frames and bins after the blocks of a stack."""
    frames, bins = x.shape[2:]
    for p in pool:
        frames, bins = frames // p, bins // p
    return frames, bins


@_fake("global_pool_mlp")
def _(x: Tensor, weight: list[Tensor], bias: list[Tensor]) -> Tensor:
    return x.new_empty(x.shape[0], weight[-1].shape[0] if weight else x.shape[1])


@_fake("bin_statistics")
def _(x: Tensor) -> Tensor:
    return x.new_empty(2, x.shape[3], dtype=torch.float64)


@_fake("log_mel")
def _(waveform: Tensor, window: Tensor, hop: int, bands: Tensor, weights: Tensor) -> Tensor:
    frames = 1 + waveform.shape[1] // hop
    return weights.new_empty(waveform.shape[0], frames, bands.shape[0])


@_fake("sep_conv2d_bn_stack")
def _(
    x: Tensor,
    pointwise: list[Tensor],
    time_taps: list[Tensor],
    freq_taps: list[Tensor],
    gamma: list[Tensor],
    beta: list[Tensor],
    mean: list[Tensor],
    var: list[Tensor],
    eps: list[float],
    dilation: list[int],
    pool: list[int],
    scale: Tensor | None,
    shift: Tensor | None,
    stripes: Tensor | None,
    save: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What is saved of a block: its input, which of the first autograd has, and z; blocked. Beside
    the input, a byte for each value of it, if the block before is one whose sums it helps to find.
    Of a first block with one input channel, in place of z a bit for each value before pooling, and
    where its statistics are those of the batch, in place of x its moments under the cross, bin by
    bin, in float64.
    """
    clips, _, frames, bins = x.shape
    lanes = vector_bytes() // x.element_size()
    saved = []
    for i, (weight, d, p) in enumerate(zip(pointwise, dilation, pool, strict=True)):
        out, channels = weight.shape
        wide = bins + 2 * min(d, bins)
        x_row, z_row = _up(channels, lanes) * _odd(bins), _up(out, lanes) * _odd(wide)
        if i > 0 and (i > 1 or pointwise[0].shape[1] != 1) and pool[i - 1] < 16:
            x_row += _up(_up(channels, lanes) * bins, x.element_size()) // x.element_size()
        sizes = [clips * frames * x_row if i > 0 else 0, clips * frames * z_row]
        frames, bins = frames // p, bins // p
        if i == 0 and channels == 1:
            bits = _up(out, lanes) // lanes * bins * p * p * (2 if lanes > 8 else 1)
            sizes[1] = clips * frames * _odd(_up(bits, 64) // 64) * 64 // x.element_size()
            if mean[i].numel() == 0 and out > 0:
                kinds = (5, 15, 25, 25) if scale is not None else (5, 15)
                moments = sum(_up(kind * x.shape[3] * 8, 64) for kind in kinds)
                sizes[0] = moments // x.element_size()
        saved += [x.new_empty(size if save else 0) for size in sizes]
    y = new_map(x, (clips, pointwise[-1].shape[0], frames, bins))
    return y, [x.new_empty(2, len(w), dtype=torch.float64) for w in pointwise], saved


def _up(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


def _odd(size: int) -> int:
    return size + 1 - size % 2


@_fake("sep_conv2d_bn_stack_backward")
def _(
    grad: Tensor,
    x: Tensor,
    pointwise: list[Tensor],
    time_taps: list[Tensor],
    freq_taps: list[Tensor],
    gamma: list[Tensor],
    beta: list[Tensor],
    *args: Any,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    *_, needs, needs_x, needs_affine = args
    columns = pointwise, time_taps, freq_taps, gamma, beta
    gradients = [
        w.new_empty(w.shape if need & (1 if w is block[0] else 2) else (0,))
        for block, need in zip(zip(*columns, strict=True), needs, strict=True)
        for w in block
    ]
    dx = new_map(x, tuple(x.shape)) if needs_x else x.new_empty(0)
    bins = x.shape[3] if needs_affine else 0
    return dx, gradients, x.new_empty(bins), x.new_empty(bins)


def _fake_gradients(
    x: Tensor, pointwise: Tensor, time_taps: Tensor, freq_taps: Tensor, needs_x: bool
) -> tuple[Tensor, ...]:
    dx = new_map(x, tuple(x.shape)) if needs_x else x.new_empty(0)
    weights = [torch.empty(w.shape, dtype=w.dtype, device=w.device) for w in
               (pointwise, time_taps, freq_taps)]  # fmt: skip
    return (dx, *weights, x.new_empty(pointwise.shape[0]))


@_fake("sep_conv2d_backward")
def _(
    grad: Tensor, x: Tensor, p: Tensor, a: Tensor, b: Tensor, dilation: int, needs_x: bool
) -> tuple[Tensor, ...]:
    return _fake_gradients(x, p, a, b, needs_x)


@_fake("sep_conv2d_block_backward")
def _(
    grad: Tensor, x: Tensor, p: Tensor, a: Tensor, b: Tensor, bias: Tensor,
    dilation: int, pool: int, needs_x: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _fake_gradients(x, p, a, b, needs_x)


# Autograd: z = pointwise @ x is recomputed in the backward kernels, so only inputs are saved;
# except by the stack in training, whose kernel hands out what it wants to see again.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dilation = inputs
    ctx.save_for_backward(*tensors[:4])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    gradients = operators.sep_conv2d_backward(grad, *ctx.saved_tensors, ctx.dilation, needs[0])
    return (*_wanted(gradients, needs), None)


def _save_block(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dilation, ctx.pool = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_block(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    gradients = operators.sep_conv2d_block_backward(
        grad, *ctx.saved_tensors, ctx.dilation, ctx.pool, needs[0]
    )
    return (*_wanted(gradients, needs), None, None)


def _save_bn_stack(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], list[Tensor]]
) -> None:
    x, *columns, eps, dilation, pool, scale, shift, stripes, save = inputs
    mean = columns[5]
    _, statistics, saved = output
    ctx.mark_non_differentiable(*statistics, *saved)
    ctx.set_materialize_grads(False)  # zeros as large as all that is saved
    ctx.save_for_backward(x, scale, shift, stripes, *chain(*columns[:5]), *statistics, *saved)
    frozen = [int(m.numel() > 0) for m in mean]
    ctx.frozen, ctx.eps, ctx.dilation, ctx.pool, ctx.save = frozen, eps, dilation, pool, save


def _differentiate_bn_stack(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    blocks = len(ctx.frozen)
    needs_x, *needs_weights, _, _, _, needs_scale, needs_shift, _, _ = ctx.needs_input_grad
    needs_affine = needs_scale or needs_shift
    nothing: list[Any] = [None] * blocks
    if grad is None:
        return None, *[nothing] * 7, *[None] * 7
    if not ctx.save:
        raise RuntimeError("fastsep::sep_conv2d_bn_stack was called with save=False")
    x, scale, shift, stripes, *tensors = ctx.saved_tensors
    *columns, statistics = [tensors[i * blocks : (i + 1) * blocks] for i in range(6)]
    needs = [int(p) + 2 * any(others) for p, *others in zip(*needs_weights[:5], strict=True)]
    dx, gradients, d_scale, d_shift = operators.sep_conv2d_bn_stack_backward(
        grad, x, *columns, statistics, ctx.frozen, ctx.eps, ctx.dilation, ctx.pool,
        scale, shift, stripes, tensors[6 * blocks :], needs, needs_x, needs_affine,
    )  # fmt: skip
    weights = [_wanted(gradients[i::5], needs_weights[i]) for i in range(5)]
    dx, d_scale, d_shift = _wanted((dx, d_scale, d_shift), (needs_x, needs_scale, needs_shift))
    return dx, *weights, nothing, nothing, None, None, None, d_scale, d_shift, None, None


def _wanted(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(gradients, needs, strict=False)]


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "fastsep's operators cannot be differentiated twice; "
        'for double backward run the model under fastsep.use_backend("reference")'
    )


torch.library.register_autograd(
    "fastsep::sep_conv2d", _differentiate, setup_context=_save, lib=library
)
torch.library.register_autograd(
    "fastsep::sep_conv2d_block", _differentiate_block, setup_context=_save_block, lib=library
)
torch.library.register_autograd(
    "fastsep::sep_conv2d_bn_stack",
    _differentiate_bn_stack,
    setup_context=_save_bn_stack,
    lib=library,
)
torch.library.register_autograd("fastsep::sep_conv2d_backward", _refuse, lib=library)
torch.library.register_autograd("fastsep::sep_conv2d_block_backward", _refuse, lib=library)
torch.library.register_autograd("fastsep::sep_conv2d_bn_stack_backward", _refuse, lib=library)


def _stack(
    x: Tensor,
    pointwise: list[Tensor],
    time_taps: list[Tensor],
    freq_taps: list[Tensor],
    bias: list[Tensor],
    dilation: list[int],
    pool: list[int],
    scale: Tensor | None,
    shift: Tensor | None,
    stripes: Tensor | None,
    bf16: bool,
) -> Tensor:
    """Gradients come block by block; without them the stack runs as one pass."""
    inputs = (x, pointwise, time_taps, freq_taps, bias, scale, shift)
    if torch.is_grad_enabled() and needs_gradients(inputs):
        y = load(x, scale, shift, stripes)
        for block in zip(pointwise, time_taps, freq_taps, bias, dilation, pool, strict=True):
            y = operators.sep_conv2d_block(y, *block)
        return in_format_of(x, y)
    with below_autograd():
        return operators.sep_conv2d_stack(
            x, pointwise, time_taps, freq_taps, bias, dilation, pool, scale, shift, stripes, bf16
        )


library.impl("sep_conv2d_stack", _stack, "Autograd")


def _masked_stack(x: Tensor, *args: Any) -> Tensor:
    """With gradients each copy runs by itself."""
    if torch.is_grad_enabled() and needs_gradients((x, *args)):
        *rest, head, weight, bias = args
        y = copy_by_copy(operators.sep_conv2d_stack, x, *rest)
        return operators.global_pool_mlp(y, weight, bias) if head else y
    with below_autograd():
        return operators.sep_conv2d_masked_stack(x, *args)


library.impl("sep_conv2d_masked_stack", _masked_stack, "Autograd")


def copy_by_copy(stack: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """A stack on masked copies of each clip; args as in the operator's schema."""
    *before, stripes, bf16 = args
    if x.shape[0] == 0:
        return stack(x, *before, stripes.flatten(0, 1), bf16)
    shape = stripes.shape[1], *x.shape[1:]
    return torch.cat([stack(clip.expand(shape), *before, masks, bf16)
                      for clip, masks in zip(x, stripes, strict=True)])  # fmt: skip


def _global_pool_mlp(x: Tensor, weight: list[Tensor], bias: list[Tensor]) -> Tensor:
    """With gradients in plain PyTorch, which knows them."""
    if torch.is_grad_enabled() and needs_gradients((x, weight, bias)):
        return global_pool_mlp(x, weight, bias)
    with below_autograd():
        return operators.global_pool_mlp(x, weight, bias)


library.impl("global_pool_mlp", _global_pool_mlp, "Autograd")


def _log_mel(waveform: Tensor, window: Tensor, hop: int, bands: Tensor, weights: Tensor) -> Tensor:
    """As above."""
    if torch.is_grad_enabled() and needs_gradients((waveform, window, weights)):
        return log_mel(waveform, window, hop, bands, weights)
    with below_autograd():
        return operators.log_mel(waveform, window, hop, bands, weights)


library.impl("log_mel", _log_mel, "Autograd")


def _bin_statistics(x: Tensor) -> Tensor:
    """As above."""
    if torch.is_grad_enabled() and x.requires_grad:
        return bin_statistics(x)
    with below_autograd():
        return operators.bin_statistics(x)


library.impl("bin_statistics", _bin_statistics, "Autograd")


# Autocast: the floating inputs are cast to autocast's dtype, as those of a convolution are.


def _register_autocast(name: str, device_type: str, key: str) -> None:
    operator = getattr(operators, name)

    def cast_and_call(*args: Any) -> Tensor:
        with without(key):
            return operator(*autocast(args, device_type))

    library.impl(name, cast_and_call, key)


for _name in (
    "sep_conv2d",
    "sep_conv2d_block",
    "sep_conv2d_stack",
    "sep_conv2d_masked_stack",
    "global_pool_mlp",
):
    _register_autocast(_name, "cpu", "AutocastCPU")
    _register_autocast(_name, "cuda", "AutocastCUDA")


# GPU kernels: Python that launches them. The stack in training has none; see fastsep.training.


def _register_launcher(name: str, key: str) -> None:
    def launch(*args: Any) -> Any:
        if args[0].device.type != key.lower():
            raise ValueError(f"{name} got tensors on {args[0].device} and on {key.lower()}")
        return getattr(gpu_kernels(name), name)(*args)

    library.impl(name, launch, key)


for _name in [name for name in KERNELS if not name.startswith("sep_conv2d_bn")]:
    _register_launcher(_name, "CUDA")
    if interpreted():
        _register_launcher(_name, "CPU")
