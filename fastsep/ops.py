"""The operators as PyTorch sees them: schemas, fake kernels, autograd, autocast.

The kernels are elsewhere: csrc registers the CPU's, the end of this file the GPU's. Callers go
through `fastsep.functional`, which checks its arguments.
"""

from collections.abc import Callable
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
from fastsep.kernels import KERNELS, gpu_kernels, interpreted
from fastsep.layouts import in_format_of, new_map
from fastsep.reference import global_pool_mlp, load

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
library.define("global_pool_mlp(Tensor x, Tensor[] weight, Tensor[] bias) -> Tensor")


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
def _(
    x: Tensor,
    pointwise: list[Tensor],
    time_taps: list[Tensor],
    freq_taps: list[Tensor],
    bias: list[Tensor],
    dilation: list[int],
    pool: list[int],
    *_: Any,
) -> Tensor:
    frames, bins = x.shape[2:]
    for p in pool:
        frames, bins = frames // p, bins // p
    return new_map(x, (x.shape[0], pointwise[-1].shape[0], frames, bins))


@_fake("global_pool_mlp")
def _(x: Tensor, weight: list[Tensor], bias: list[Tensor]) -> Tensor:
    return x.new_empty(x.shape[0], weight[-1].shape[0] if weight else x.shape[1])


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


# Autograd: z = pointwise @ x is recomputed in the backward kernels, so only inputs are saved.


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


def _wanted(gradients: tuple[Tensor, ...], needs: tuple[bool, ...]) -> list[Tensor | None]:
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
torch.library.register_autograd("fastsep::sep_conv2d_backward", _refuse, lib=library)
torch.library.register_autograd("fastsep::sep_conv2d_block_backward", _refuse, lib=library)


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


def _global_pool_mlp(x: Tensor, weight: list[Tensor], bias: list[Tensor]) -> Tensor:
    """With gradients in plain PyTorch, which knows them."""
    if torch.is_grad_enabled() and needs_gradients((x, weight, bias)):
        return global_pool_mlp(x, weight, bias)
    with below_autograd():
        return operators.global_pool_mlp(x, weight, bias)


library.impl("global_pool_mlp", _global_pool_mlp, "Autograd")


# Autocast: the floating inputs are cast to autocast's dtype, as those of a convolution are.


def _register_autocast(name: str, device_type: str, key: str) -> None:
    operator = getattr(operators, name)

    def cast_and_call(*args: Any) -> Tensor:
        with without(key):
            return operator(*autocast(args, device_type))

    library.impl(name, cast_and_call, key)


for _name in ("sep_conv2d", "sep_conv2d_block", "sep_conv2d_stack", "global_pool_mlp"):
    _register_autocast(_name, "cpu", "AutocastCPU")
    _register_autocast(_name, "cuda", "AutocastCUDA")


# GPU kernels: Python that launches them.


def _register_launcher(name: str, key: str) -> None:
    def launch(*args: Any) -> Any:
        if args[0].device.type != key.lower():
            raise ValueError(f"{name} got tensors on {args[0].device} and on {key.lower()}")
        return getattr(gpu_kernels(name), name)(*args)

    library.impl(name, launch, key)


for _name in KERNELS:
    _register_launcher(_name, "CUDA")
    if interpreted():
        _register_launcher(_name, "CPU")
