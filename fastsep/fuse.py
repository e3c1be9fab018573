"""`fuse(model)`: puts the fused operators into a model that was written without them.

A separable block is recognised by what it computes, not by its name: the module's forward is traced
with torch.fx and read backwards from its output,

    output <- [AvgPool2d] <- [ReLU <- BatchNorm2d] <- 3x1 depthwise + 1x3 depthwise <- 1x1 <- input
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastsep.batchnorm import FoldCache
from fastsep.functional import sep_conv2d, sep_conv2d_block
from fastsep.modules import SepConv2d, SepConvBlock, relu_pool, uses_batch_statistics


@dataclass
class FuseReport:
    """What `fuse` did: module paths with a description (replaced) or a reason (left_alone)."""

    replaced: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"fused       {path}: {what}" for path, what in self.replaced.items()]
        lines += [f"left alone  {path}: {why}" for path, why in self.left_alone.items()]
        return "\n".join(lines) or "found no separable convolutions"


@dataclass(frozen=True)
class Layers:
    """Where a block keeps its layers: paths inside its module; bn is None for the bare operator."""

    pointwise: str
    time: str
    freq: str
    bn: str | None
    dilation: int
    pool: int


class FusedSepConv(nn.Module):
    """Stands in for a block or operator: the same layers under the same names, run fused.

    Parameters, buffers and state_dict keys are the original's own. In training the convolutions
    are one operator; in eval mode batch norm, ReLU and pooling join it.
    """

    def __init__(self, original: nn.Module, layers: Layers) -> None:
        super().__init__()
        self._modules = original._modules
        self._parameters = original._parameters
        self._buffers = original._buffers
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        self.training = original.training
        self.layers = layers
        self._original = (original,)  # in a tuple, so that it is not registered as a child
        self._fold = FoldCache()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_original" not in self.__dict__:
                raise
            return getattr(self._original[0], name)

    def train(self, mode: bool = True) -> "FusedSepConv":
        self._original[0].train(mode)  # the same layers, perhaps with a train() of its own
        self.training = self._original[0].training
        return self

    def as_block(self) -> SepConvBlock:
        """A SepConvBlock of the same weights, not shared."""
        pointwise = self._weight(self.layers.pointwise).detach()
        bn = self.get_submodule(self.layers.bn or "")
        assert isinstance(bn, nn.BatchNorm2d)
        cout, cin = pointwise.shape
        block = SepConvBlock(cin, cout, dilation=self.layers.dilation, pool=self.layers.pool)
        block.conv.pointwise = nn.Parameter(pointwise.clone())
        block.conv.time_taps = nn.Parameter(self._weight(self.layers.time).detach().clone())
        block.conv.freq_taps = nn.Parameter(self._weight(self.layers.freq).detach().clone())
        block.bn = bn
        return block.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.layers
        pointwise = self._weight(layers.pointwise)
        taps = self._weight(layers.time), self._weight(layers.freq)
        bn = None if layers.bn is None else self.get_submodule(layers.bn)
        if bn is None:
            return sep_conv2d(x, pointwise, *taps, dilation=layers.dilation)
        assert isinstance(bn, (nn.BatchNorm2d, nn.SyncBatchNorm))
        if uses_batch_statistics(bn):
            y = sep_conv2d(x, pointwise, *taps, dilation=layers.dilation)
            return relu_pool(bn(y), layers.pool)
        folded = self._fold(bn, *taps)
        return sep_conv2d_block(x, pointwise, *folded, dilation=layers.dilation, pool=layers.pool)

    def _weight(self, path: str) -> Tensor:
        conv = self.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        return conv.weight.flatten(1)  # (Cout, Cin, 1, 1) -> (Cout, Cin); (C, 1, 3, 1) -> (C, 3)

    def extra_repr(self) -> str:
        return f"dilation={self.layers.dilation}, pool={self.layers.pool}"


def fuse(model: nn.Module) -> FuseReport:
    """Replaces, in place, every module of `model` that is one eager separable block or operator.

    Weights are shared with the original modules, so optimisers, state_dicts and training go on as
    before; `unfuse` undoes it. A module is left alone, with the reason in the report, when its
    forward does anything the fused operator would not (bias, stride, other dilations, hooks, code
    that torch.fx cannot trace), or holds several blocks inline: give each a module of its own.

    Returns:
        FuseReport, whose str() lists what was replaced and what was left alone and why.
    """
    report = FuseReport()
    _fuse_children(model, "", report, {})
    if not report.replaced and not report.left_alone and _has_cross(model):
        found = _recognise(model)
        report.left_alone["(model)"] = (
            "the model itself is the block and cannot replace itself; wrap it: nn.Sequential(model)"
            if isinstance(found, Layers)
            else found
        )
    return report


def unfuse(model: nn.Module) -> None:
    """Puts the original modules back, in place; their weights are the ones trained meanwhile."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, FusedSepConv):
                parent._modules[name] = child._original[0]


def _fuse_children(
    parent: nn.Module, prefix: str, report: FuseReport, seen: dict[int, nn.Module]
) -> None:
    for name, child in list(parent._modules.items()):
        if child is None or isinstance(child, (FusedSepConv, SepConv2d, SepConvBlock)):
            continue
        path = f"{prefix}{name}"
        if id(child) in seen:  # one module used in two places stays one module
            parent._modules[name] = seen[id(child)]
            continue
        seen[id(child)] = child
        if not _has_cross(child):
            continue
        found = _recognise(child)
        if isinstance(found, Layers):
            seen[id(child)] = parent._modules[name] = FusedSepConv(child, found)
            report.replaced[path] = _describe(child, found)
            continue
        before = len(report.replaced) + len(report.left_alone)
        _fuse_children(child, f"{path}.", report, seen)
        if len(report.replaced) + len(report.left_alone) == before:  # no part of it explains it
            report.left_alone[path] = found


def _describe(module: nn.Module, layers: Layers) -> str:
    conv = module.get_submodule(layers.pointwise)
    assert isinstance(conv, nn.Conv2d)
    channels = f"{conv.in_channels} -> {conv.out_channels}, dilation {layers.dilation}"
    if layers.bn is None:
        return f"separable convolution {channels}"
    return f"separable block {channels}, pool {layers.pool}"


def _has_cross(module: nn.Module) -> bool:
    """Whether a 3x1 and a 1x3 depthwise convolution are anywhere in the module."""
    fused = {m for f in module.modules() if isinstance(f, FusedSepConv) for m in f.modules()}
    kernels = {
        conv.kernel_size
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels and conv not in fused
    }
    return {(3, 1), (1, 3)} <= kernels


def _recognise(module: nn.Module) -> Layers | str:
    """The layers of the block that the module is, or why it is not one."""
    for path, part in module.named_modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks,
                 part._backward_pre_hooks)  # fmt: skip
        if any(hooks):
            return f"{path or 'the module'} has hooks, which the fused operator would not call"
    found: list[Layers] = []
    modes = {part: part.training for part in module.modules()}
    try:
        for mode in (True, False):  # a forward that branches on self.training is not the block
            module.train(mode)
            found.append(_Reader(module).read())
    except _Mismatch as mismatch:
        return str(mismatch)
    finally:
        for part, mode in modes.items():
            part.training = mode
    if found[0] != found[1]:
        return "its forward differs between training and eval mode"
    return found[0]


class _Mismatch(Exception):
    """Why a module is not a separable block."""


class _Reader:
    """Reads a module's traced forward from its output back to its input."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        before = {part: dict(vars(part)) for part in module.modules()}
        try:
            self.graph = fx.Tracer().trace(module)
        except Exception as error:  # whatever the foreign forward raises on a symbolic input
            raise _Mismatch(f"torch.fx cannot trace its forward: {error}".split("\n")[0]) from error
        finally:
            stored = [part for part, state in before.items() if vars(part) != state]
            for part in stored:  # a symbolic value it set as an attribute
                vars(part).clear()
                vars(part).update(before[part])
        if stored:
            raise _Mismatch("its forward sets attributes, which the fused operator would not")

    def read(self) -> Layers:
        output = next(node for node in self.graph.nodes if node.op == "output")
        node = self._pass_identity(output.args[0])
        node, pool = self._pool(node)
        node, relu = self._relu(node)
        node, bn = self._batch_norm(node)
        if (bn is None) != (not relu) or (bn is None and pool != 1):
            raise _Mismatch(
                "its convolutions are followed by something other than "
                "batch norm, ReLU and (optionally) average pooling"
            )
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
        _check_pointwise(pointwise, conv)
        dilation = _check_depthwise(time, time_conv, axis=0)
        if _check_depthwise(freq, freq_conv, axis=1) != dilation:
            raise _Mismatch(f"{time} and {freq} have different dilations")
        return Layers(pointwise, time, freq, bn, dilation, pool)

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
            raise _Mismatch("its pooling windows are not square, abutting and unpadded")
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
            raise _Mismatch("it does not end in the sum of two depthwise convolutions")
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


def _check_depthwise(name: str, conv: nn.Conv2d, axis: int) -> int:
    """The dilation of a depthwise convolution along `axis` that keeps the map's size."""
    shape, other = ("3x1", "1x3")[axis], 1 - axis
    if conv.kernel_size != ((3, 1), (1, 3))[axis]:
        raise _Mismatch(f"{name} has a {conv.kernel_size} kernel, expected {shape}")
    if not conv.groups == conv.in_channels == conv.out_channels:
        raise _Mismatch(f"{name} is not depthwise with one filter a channel")
    if conv.bias is not None:
        raise _Mismatch(f"{name} has a bias")
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
