"""`fuse(model)`: puts the fused operators into a model that was written without them.

Blocks are replaced one by one (see `fastsep.recognise`). Where a forward chains several, they run
as one stack (see `fastsep.streaming`).
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fastsep.batchnorm import FoldCache, uses_batch_statistics
from fastsep.checks import BlockParameters
from fastsep.functional import sep_conv2d
from fastsep.modules import SepConv2d, SepConvBlock, norm_relu_pool
from fastsep.recognise import Layers, followers, recognise
from fastsep.streaming import Block, chain, has_hooks, run_block, unchain


@dataclass
class FuseReport:
    """What `fuse` did: module paths with a description (replaced) or a reason (left_alone).

    stacks holds the paths of blocks that run as one stack in inference.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    stacks: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"fused       {path}: {what}" for path, what in self.replaced.items()]
        lines += [f"fused       {s[0]} ... {s[-1]}: stack of {len(s)} blocks" for s in self.stacks]
        lines += [f"left alone  {path}: {why}" for path, why in self.left_alone.items()]
        return "\n".join(lines) or "found no separable convolutions"


class FusedSepConv(Block):
    """Stands in for a block or operator: the same layers under the same names, run fused.

    Parameters, buffers and state_dict keys are the original's own. In training the convolutions
    are one operator; in eval mode batch norm, ReLU and pooling join it. With hooks on its layers,
    or others in their place, the original's forward runs.
    """

    def __init__(self, original: nn.Module, layers: Layers) -> None:
        super().__init__()
        for name in list(vars(self)):  # parameters, layers, mode, hooks: all that is nn.Module's
            vars(self)[name] = vars(original)[name]
        self.layers = layers
        self._original = (original,)  # in a tuple, so that it is not registered as a child
        self._recognised = tuple(
            (parent, name, child, path)
            for prefix, parent in original.named_modules()
            for name, child in parent._modules.items()
            for path in (f"{prefix}.{name}" if prefix else name,)
        )
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

    def is_as_recognised(self) -> bool:
        """Whether its layers are those that `fuse` saw, and have no hooks."""
        for parent, name, child, path in self._recognised:
            now = parent._modules.get(name)
            if now is not child and not (path == self.layers.bn and isinstance(now, _NORMS)):
                return False
            if now is not None and has_hooks(now):
                return False
        return True

    def may_join(self) -> bool:
        bn = self._batch_norm()
        return isinstance(bn, _NORMS) and not uses_batch_statistics(bn) and self.is_as_recognised()

    def as_block(self) -> SepConvBlock:
        """A SepConvBlock of the same weights, not shared."""
        pointwise = self._weight(self.layers.pointwise).detach()
        bn = self._batch_norm()
        assert isinstance(bn, nn.BatchNorm2d)
        cout, cin = pointwise.shape
        block = SepConvBlock(cin, cout, dilation=self.layers.dilation, pool=self.layers.pool)
        block.conv.pointwise = nn.Parameter(pointwise.clone())
        block.conv.time_taps = nn.Parameter(self._weight(self.layers.time).detach().clone())
        block.conv.freq_taps = nn.Parameter(self._weight(self.layers.freq).detach().clone())
        block.bn = bn
        return block.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_as_recognised():
            return self._original[0].forward(x)
        if self.layers.bn is not None and (p := self.inference_parameters()) is not None:
            return run_block(self, x, p)
        layers = self.layers
        weights = map(self._weight, (layers.pointwise, layers.time, layers.freq))
        y = sep_conv2d(x, *weights, dilation=layers.dilation)
        return y if layers.bn is None else norm_relu_pool(self._batch_norm(), y, layers.pool)

    def inference_parameters(self) -> BlockParameters | None:
        bn, layers = self._batch_norm(), self.layers
        assert isinstance(bn, _NORMS)
        taps = self._fold(bn, self._weight(layers.time), self._weight(layers.freq))
        if taps is None:
            return None
        pointwise = self._weight(layers.pointwise)
        return BlockParameters(pointwise, *taps, layers.dilation, layers.pool)

    def _batch_norm(self) -> nn.Module | None:
        return None if self.layers.bn is None else self._layer(self.layers.bn)

    def _weight(self, path: str) -> Tensor:
        conv = self._layer(path)
        assert isinstance(conv, nn.Conv2d)
        return conv.weight.flatten(1)  # (Cout, Cin, 1, 1) -> (Cout, Cin); (C, 1, 3, 1) -> (C, 3)

    def _layer(self, path: str) -> nn.Module:
        layer: nn.Module | None = self
        for name in path.split("."):
            assert layer is not None
            layer = layer._modules[name]  # get_submodule takes several times as long
        assert layer is not None
        return layer

    def extra_repr(self) -> str:
        return f"dilation={self.layers.dilation}, pool={self.layers.pool}"


_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fuse(model: nn.Module) -> FuseReport:
    """Replaces, in place, every module of `model` that is one eager separable block or operator.

    Weights are shared with the original modules, so optimisers, state_dicts and training go on as
    before; `unfuse` undoes it. A module is left alone, with the reason in the report, when its
    forward does anything the fused operator would not (bias, stride, other dilations, hooks, code
    that torch.fx cannot trace), or holds several blocks inline: give each a module of its own.

    Blocks that a forward calls one after the other, with nothing else reading the maps between
    them, run as one streaming pass in inference (eval mode, without gradients, autocast and
    compilation). They stay where they are, and one that gets hooks or is replaced leaves the pass.

    Returns:
        FuseReport, whose str() lists what was replaced and what was left alone and why.
    """
    report = FuseReport()
    _fuse_children(model, "", report, {})
    if not report.replaced and not report.left_alone and _has_cross(model):
        found = recognise(model)
        report.left_alone["(model)"] = (
            "the model itself is the block and cannot replace itself; wrap it: nn.Sequential(model)"
            if isinstance(found, Layers)
            else found
        )
    if report.replaced:
        runs = _make_stacks(model, "")
        report.stacks = [run for run in runs if not report.replaced.keys().isdisjoint(run)]
    return report


def unfuse(model: nn.Module) -> None:
    """Puts the original modules back, in place; their weights are the ones trained meanwhile."""
    for parent in list(model.modules()):
        unchain(parent)
        for name, child in parent._modules.items():
            if isinstance(child, FusedSepConv):
                original = child._original[0]
                original._is_full_backward_hook = child._is_full_backward_hook
                parent._modules[name] = original


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
        found = recognise(child)
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


def _make_stacks(module: nn.Module, prefix: str) -> list[list[str]]:
    """Has every part of the module that chains fused blocks run them as stacks.

    Returns:
        The paths of the blocks of each stack.
    """
    if sum(_is_block(part) for part in module.modules()) < 2:
        return []
    owners = followers(module, _is_block)
    runs: list[list[str]] = []
    if owners is None:  # perhaps parts of it can be traced
        children = list(module._modules.items())
        owners = {"": {a: b for (a, first), (b, second) in pairwise(children)
                       if isinstance(module, nn.Sequential)
                       and _is_block(first) and _is_block(second)}}  # fmt: skip
        for name, child in children:
            if child is not None:
                runs += _make_stacks(child, f"{prefix}{name}.")
    after: dict[str, str] = {}
    for path, links in owners.items():
        if links and chain(module.get_submodule(path), links):
            inside = f"{path}." if path else ""
            after |= {f"{prefix}{inside}{a}": f"{prefix}{inside}{b}" for a, b in links.items()}
    reached = set(after.values())
    for run in [[path] for path in after if path not in reached]:
        while run[-1] in after:
            run.append(after[run[-1]])
        runs.append(run)
    return runs


def _is_block(module: nn.Module | None) -> bool:
    return isinstance(module, FusedSepConv) and module.layers.bn is not None
