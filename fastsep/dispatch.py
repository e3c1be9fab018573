"""From a call to an operator or to the reference, past autograd and autocast where they do nothing.

Every private part of PyTorch that the library leans on is in this file.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch.amp.autocast_mode import _cast
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_map_only as tree_map_only

from fastsep.kernels import KERNELS, select
from fastsep.layouts import in_format_of

operators = torch.ops.fastsep  # the namespace that fastsep.ops fills

# `with below_autograd():` operators called inside go to the kernel; autograd sees none of them.
below_autograd: Callable[[], AbstractContextManager[None]] = torch._C._AutoDispatchBelowAutograd

wrapper_tensor = Tensor._make_wrapper_subclass  # a tensor subclass without memory of its own


def run(
    name: str,
    plain: Callable[..., Tensor],
    check: Callable[[], None],
    x: Tensor,
    *args: Any,
) -> Tensor:
    """Runs an operator, or `plain` where no kernel has it, on what `check` may find wrong.

    Plain inference on a CPU is so fast for one clip that checks in Python would show, as would
    autograd, which is Python for these operators. The C++ kernels check for themselves; only if
    they refuse has `check` the better words for it.
    """
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    backend = _backend_of(x, traced)
    operator = getattr(operators, name)
    if backend == "cpu" and not traced and _is_plain_inference(x, args):
        try:
            with below_autograd():
                return operator(x, *args)
        except Exception as error:
            refused = error
        check()
        raise refused
    check()
    if backend not in KERNELS[name]:
        return _run_plain(plain, x, *args)
    return operator(x, *args)


def has_kernel(name: str, x: Tensor) -> bool:
    """Whether a call with x goes to an operator's own kernel."""
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    return _backend_of(x, traced) in KERNELS[name]


def as_node(function: Callable[..., Tensor], x: fx.Proxy, *args: Any, **kwargs: Any) -> Any:
    """A call of `function` in the graph that torch.fx makes of what it does with x."""
    return x.tracer.create_proxy("call_function", function, (x, *args), kwargs)


def _run_plain(plain: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """`plain`, which under autocast must round where the kernels do and nowhere else."""
    device_type = x.device.type
    if autocasts(device_type):
        x, *args = autocast((x, *args), device_type)
        with torch.autocast(device_type, enabled=False):
            y = plain(x, *args)
    else:
        y = plain(x, *args)
    return in_format_of(x, y) if y.dim() == 4 else y


def _backend_of(x: Tensor, traced: bool) -> str:
    """As `select`, but transforms and ONNX, which know PyTorch's own operators only, get those."""
    backend = select(x.device)
    if is_transformed() or (traced and torch.onnx.is_in_onnx_export()):  # which takes long to say
        return "reference"
    return backend


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def has_global_hooks() -> bool:
    """Whether there are hooks for every module that is called."""
    return bool(_has_any_global_hook())


def is_observed() -> bool:
    """Whether a transform, a mode, a tracer or the compiler may see what is computed."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )


def _is_plain_inference(x: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether there is nothing to differentiate, so that x's kernel will run."""
    return type(x) is Tensor and not (torch.is_grad_enabled() and needs_gradients((x, *args)))


def needs_gradients(args: Iterable[Any]) -> bool:
    return any([tensor.requires_grad for tensor in tensors_of(args)])  # a generator is slower


def tensors_of(args: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments, those in lists included."""
    tensors: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            tensors.append(arg)
        elif isinstance(arg, list):
            tensors += [item for item in arg if isinstance(item, Tensor)]
    return tensors


def autocasts(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def autocast(args: Any, device_type: str) -> Any:
    """The floating tensors among args, float64 aside, in the dtype that autocast uses."""
    return _cast(args, device_type, torch.get_autocast_dtype(device_type))


def without(key: str) -> AbstractContextManager[None]:
    """`with without("AutocastCPU"):` the dispatcher passes this key over."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    return torch._C._ExcludeDispatchKeyGuard(keys)
