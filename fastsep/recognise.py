"""Whether a module is one eager separable block, and which blocks a forward chains.

A block is recognised by what it computes, not by its name: the module's forward is traced with
torch.fx and read backwards from its output,

    output <- [AvgPool2d] <- [ReLU <- BatchNorm2d] <- 3x1 depthwise + 1x3 depthwise <- 1x1 <- input
"""

import copy
import operator
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastsep.dispatch import TorchDispatchMode
from fastsep.front import Front
from fastsep.hooks import has_hooks


@dataclass(frozen=True)
class Layers:
    """Where a block keeps its layers: paths inside its module.

    bn: None for the bare operator, and in a block whose batch norm was folded; relu tells which.
    biased: whether the depthwise convolutions have biases.
    """

    pointwise: str
    time: str
    freq: str
    bn: str | None
    relu: bool
    biased: bool
    dilation: int
    pool: int


def recognise(module: nn.Module) -> Layers | str:
    """The layers of the block that the module is, or why it is not one."""
    for path, part in module.named_modules():
        if has_hooks(part):
            what = "has hooks or a forward of its own (or __call__), which would not be called"
            return f"{path or 'the module'} {what}"
        if hasattr(type(part).forward, "__wrapped__") and not isinstance(part, Front):
            return f"the forward of {path or 'the module'} is decorated, with what would be lost"
    tensors = _tensors(module, with_buffers=True)
    found: set[Layers] = set()
    try:
        twin = copy.deepcopy(module, tensors)  # for whatever the forward may store
        for mode, state in product((True, False), repeat=2):
            twin.train(mode)  # a forward that branches on self.training is not the block
            with _state(state):
                found.add(_Reader(twin).read())
    except _Mismatch as mismatch:
        return str(mismatch)
    except Exception as error:
        return f"it cannot be copied to be looked at: {error}".split("\n")[0]
    if len(found) > 1:
        return "its forward differs between training and eval mode"
    return found.pop()


def _tensors(module: nn.Module, *, with_buffers: bool) -> dict[int, Any]:
    """For deepcopy: what is not to be copied."""
    return {
        id(value): value
        for part in module.modules()
        for values in (part._parameters, *((part._buffers, vars(part)) if with_buffers else ()))
        for value in values.values()
        if isinstance(value, Tensor)
    }


def followers(
    module: nn.Module, is_block: Callable[[nn.Module], bool]
) -> dict[str, dict[str, str]] | None:
    """Which blocks hand their map to one other block, at once and to nobody else.

    The module's forward is traced in eval mode.

    Returns:
        Path of the submodule whose forward calls both -> path of a block, from there -> path of
        the next. None when torch.fx cannot trace the forward.
    """
    try:  # on a copy, for whatever the forward may store; parameters stand for themselves
        twin = copy.deepcopy(module, _tensors(module, with_buffers=False)).eval()
        with torch.random.fork_rng(devices=()):
            graph = _BlockTracer(is_block).trace(twin)
    except Exception:
        return None
    calls = [
        node
        for node in graph.nodes
        if node.op == "call_module" and is_block(twin.get_submodule(str(node.target)))
    ]
    links: dict[str, set[tuple[str, str] | None]] = {}  # of every call of a block
    for node in calls:
        reader = node.next
        follows = reader in calls and [*node.users] == [reader] and not reader.kwargs
        link = _common_owner(node, reader) if follows else None
        links.setdefault(str(node.target), set()).add(link)
    found: dict[str, dict[str, str]] = {}
    for path, all_calls in links.items():
        link = all_calls.pop()
        if link is not None and not all_calls:
            owner, after = link
            start = len(owner) + 1 if owner else 0
            found.setdefault(owner, {})[path[start:]] = after[start:]
    return found


class _BlockTracer(fx.Tracer):
    """Sees blocks as wholes."""

    def __init__(self, is_block: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_block = is_block

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_block(m) or super().is_leaf_module(m, module_qualified_name)


def _common_owner(first: fx.Node, second: fx.Node) -> tuple[str, str] | None:
    """The innermost module that calls both, and the path of the second: (owner, path).

    None if one of them is called through a module that does not hold it.
    """
    stacks = [[*node.meta["nn_module_stack"].items()][:-1] for node in (first, second)]
    shared = [a for a, b in zip(*stacks, strict=False) if a[0] == b[0]]
    owner = str(shared[-1][1][0]) if shared else ""
    for node, stack in zip((first, second), stacks, strict=True):
        for _, (path, _) in stack[max(len(shared) - 1, 0) :]:
            if not str(node.target).startswith(f"{path}."):
                return None
    return owner, str(second.target)


class _Mismatch(Exception):
    """Why a module is not a separable block."""


class _LayerTracer(fx.Tracer):
    """Sees what a forward does with tensors other than its input, and under which state."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.outside = _modes()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.outside:
            raise _Mismatch(
                "its forward switches gradients or autocast, which the fused operator would not"
            )
        return super().create_node(*args, **kwargs)


def _modes() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in _DEVICES),
        *(torch.get_autocast_dtype(device) for device in _DEVICES),
    )


_DEVICES = ("cpu", "cuda")


@contextmanager
def _state(on: bool) -> Iterator[None]:
    """Gradients and autocast on or off: a forward that sets either differs from one of the two."""
    before = [torch.is_autocast_enabled(device) for device in _DEVICES]
    try:
        for device in _DEVICES:
            torch.set_autocast_enabled(device, on)
        with torch.set_grad_enabled(on):
            yield
    finally:
        for device, enabled in zip(_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, enabled)


class _NoTensors(TorchDispatchMode):
    """What a traced forward computes with real tensors is not in the trace, but has happened."""

    def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
        raise _Mismatch(
            "its forward computes with tensors of its own, which the fused operator would not"
        )


def _attributes(module: nn.Module) -> list[dict[str, Any]]:
    """What a forward may store, in a form that can be compared."""
    return [
        {k: repr(v) if isinstance(v, (list, dict, set, deque)) else id(v) for k, v in own.items()}
        for part in module.modules()
        if (own := {k: v for k, v in vars(part).items() if k not in _USUAL})
    ]


_USUAL = frozenset(vars(nn.Module()))


class _Reader:
    """Reads a module's traced forward from its output back to its input."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        before = _attributes(module)
        try:
            with _NoTensors():
                self.graph = _LayerTracer().trace(module)
        except _Mismatch:
            raise
        except Exception as error:  # whatever the foreign forward raises on a symbolic input
            raise _Mismatch(f"torch.fx cannot trace its forward: {error}".split("\n")[0]) from error
        if _attributes(module) != before:
            raise _Mismatch("its forward sets attributes, which the fused operator would not")

    def read(self) -> Layers:
        output = next(node for node in self.graph.nodes if node.op == "output")
        node = self._pass_identity(output.args[0])
        node, pool = self._pool(node)
        node, relu = self._relu(node)
        node, bn = self._batch_norm(node)
        branches = [self._conv(branch) for branch in self._sum(node)]
        if branches[0][1].kernel_size == (1, 3):
            branches.reverse()
        (time, time_conv, z), (freq, freq_conv, other_z) = branches
        pointwise, conv, x = self._conv(z)
        if z is not other_z and self._conv(other_z) != (pointwise, conv, x):
            raise _Mismatch("the two depthwise convolutions read different inputs")
        if x.op != "placeholder":
            raise _Mismatch(
                "its forward holds more than one separable block; "
                "give each a module of its own to have it fused"
            )
        if any(node.op != "output" and not node.users for node in self.graph.nodes):
            raise _Mismatch("its forward takes or computes something that its result does not use")
        biased = any(conv.bias is not None for conv in (time_conv, freq_conv))
        folded = biased and bn is None
        if not (relu or (bn is None and pool == 1)) or (relu and bn is None and not folded):
            raise _Mismatch(
                "its convolutions are followed by something other than "
                "batch norm (or biases instead), ReLU and (optionally) average pooling"
            )
        _check_pointwise(pointwise, conv)
        dilation = _check_depthwise(time, time_conv, axis=0, may_bias=bn is None)
        other = _check_depthwise(freq, freq_conv, axis=1, may_bias=bn is None)
        if other != dilation:
            raise _Mismatch(f"{time} and {freq} have different dilations, {dilation} and {other}")
        return Layers(pointwise, time, freq, bn, relu, biased, dilation, pool)

    def _layer(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return None
        return self.module.get_submodule(str(node.target))

    def _pass_identity(self, node: Any) -> fx.Node:
        if not isinstance(node, fx.Node):
            raise _Mismatch("its forward does not return one tensor")
        while isinstance(self._layer(node), nn.Identity):
            node = _only_input(node)
        return node

    def _pool(self, node: fx.Node) -> tuple[fx.Node, int]:
        layer = self._layer(node)
        if isinstance(layer, nn.AvgPool2d):
            options: dict[str, Any] = {
                "kernel_size": layer.kernel_size,
                "stride": layer.stride,
                "padding": layer.padding,
                "ceil_mode": layer.ceil_mode,
                "divisor_override": layer.divisor_override,
            }
        elif node.target is F.avg_pool2d:
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                     "divisor_override")  # fmt: skip
            options = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        else:
            return node, 1
        if any(isinstance(value, fx.Node) for value in options.values()):
            raise _Mismatch("the size of its pooling windows depends on the input")
        window = _pair(options["kernel_size"])
        stride = options.get("stride")
        if (
            window[0] != window[1]
            or (stride not in (None, ()) and _pair(stride) != window)
            or _pair(options.get("padding", 0)) != (0, 0)
            or options.get("ceil_mode")
            or options.get("divisor_override")
        ):
            what = ", ".join(f"{name} {value}" for name, value in options.items())
            raise _Mismatch(f"its pooling windows are not square, abutting and unpadded: {what}")
        return self._pass_identity(_only_input(node)), window[0]

    def _relu(self, node: fx.Node) -> tuple[fx.Node, bool]:
        functions = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
        called = node.op in ("call_function", "call_method") and node.target in functions
        if called or isinstance(self._layer(node), nn.ReLU):
            return self._pass_identity(_only_input(node)), True
        return node, False

    def _batch_norm(self, node: fx.Node) -> tuple[fx.Node, str | None]:
        if isinstance(self._layer(node), nn.BatchNorm2d):
            return self._pass_identity(_only_input(node)), str(node.target)
        return node, None

    def _sum(self, node: fx.Node) -> list[fx.Node]:
        sums = (operator.add, operator.iadd, torch.add, "add", "add_")
        called = node.op in ("call_function", "call_method") and node.target in sums
        if not called or len(node.args) != 2 or node.kwargs:
            layer = self._layer(node)
            found = node.target if layer is None else f"{node.target}: {layer}"
            raise _Mismatch(
                "it does not end in the sum of two depthwise convolutions, 3x1 and 1x3, that read "
                f"the same 1x1 convolution (then batch norm, ReLU, average pooling): found {found}"
            )
        return [self._pass_identity(argument) for argument in node.args]

    def _conv(self, node: fx.Node) -> tuple[str, nn.Conv2d, fx.Node]:
        layer = self._layer(node)
        if not isinstance(layer, nn.Conv2d) or (
            type(layer) is not nn.Conv2d and not hasattr(layer, "parametrizations")
        ):
            raise _Mismatch(f"expected a Conv2d, found {layer or node.target}")
        return str(node.target), layer, self._pass_identity(_only_input(node))


def _only_input(node: fx.Node) -> fx.Node:
    if not node.args or not isinstance(node.args[0], fx.Node):
        raise _Mismatch(f"{node.target} does not take the running tensor")
    return node.args[0]


def _check_pointwise(name: str, conv: nn.Conv2d) -> None:
    if conv.kernel_size != (1, 1) or conv.groups != 1 or conv.stride != (1, 1):
        raise _Mismatch(f"{name} is not a 1x1 convolution over all channels with stride 1")
    if _padding(conv) != (0, 0):
        raise _Mismatch(f"{name} pads its input")
    if conv.bias is not None:
        raise _Mismatch(f"{name} has a bias, which the batch norm after it makes useless: drop it")


def _check_depthwise(name: str, conv: nn.Conv2d, axis: int, may_bias: bool) -> int:
    """The dilation of a depthwise convolution along `axis` that keeps the map's size."""
    shape, other = ("3x1", "1x3")[axis], 1 - axis
    if conv.kernel_size != ((3, 1), (1, 3))[axis]:
        raise _Mismatch(f"{name} has a {conv.kernel_size} kernel, expected {shape}")
    if not conv.groups == conv.in_channels == conv.out_channels:
        raise _Mismatch(f"{name} is not depthwise with one filter a channel")
    if conv.bias is not None and not may_bias:
        raise _Mismatch(f"{name} has a bias before a batch norm, which makes it useless: drop it")
    if conv.stride != (1, 1) or conv.padding_mode != "zeros":
        raise _Mismatch(f"{name} has a stride or a padding mode other than zeros")
    dilation, padding = conv.dilation[axis], _padding(conv)
    if padding[axis] != dilation or padding[other] != 0:
        raise _Mismatch(f"{name} pads by {padding}, which does not keep the map's size")
    return dilation


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        size, dilation = conv.kernel_size, conv.dilation
        return (dilation[0] * (size[0] - 1) // 2, dilation[1] * (size[1] - 1) // 2)
    return _pair(conv.padding)


def _pair(value: Any) -> tuple[int, int]:
    pair = (value,) * 2 if isinstance(value, int) else tuple(value) * (3 - len(value))
    return pair[0], pair[1]
