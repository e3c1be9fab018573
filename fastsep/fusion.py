"""`fuse(model)`: puts the fused operators into a model that was written without them.

Blocks get another forward one by one (see `fastsep.recognise`). Where a forward chains several,
they run as one stack (see `fastsep.streaming`).
"""

import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastsep.batchnorm import FoldCache, is_foldable, is_plain, norm_of
from fastsep.checks import BatchNormBlockParameters, BlockParameters
from fastsep.front import Front, behind, put, take_off
from fastsep.functional import sep_conv2d, sep_conv2d_bn_stack
from fastsep.hooks import has_global_hooks
from fastsep.modules import SepConv2d, SepConvBlock
from fastsep.recognise import Layers, followers, recognise
from fastsep.snapshot import Snapshot
from fastsep.streaming import Block, chain, learns, run_block, unchain
from fastsep.training import norm_relu_pool


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


@dataclass
class _Fusion:
    """What a fused block knows of itself."""

    layers: Layers
    snapshot: Snapshot
    cache: FoldCache = field(default_factory=FoldCache)
    told: bool = False  # that it no longer is what was fused


class FusedSepConv(Front, Block):
    """In front of the class of a block or operator: its layers, run fused.

    Convolutions, batch norm, ReLU and pooling are one operator. Where layers have hooks, or are not
    what they were, the forward runs as it was written.
    """

    _fusion: _Fusion | None = None  # that of an instance the class makes, as slices are

    def run(self, *args: Any, **kwargs: Any) -> Any:
        fusion = self._fusion
        if (
            fusion is None
            or len(args) != 1
            or kwargs
            or not isinstance(args[0], Tensor)  # what torch.fx traces with, or for it to refuse
            or has_global_hooks()
            or not self.is_as_recognised()
        ):
            return behind(self).forward(self, *args, **kwargs)
        x, layers = args[0], fusion.layers
        folds = layers.relu and self._norm_folds()
        if (not folds or learns(self)) and self._norm_trains():
            return sep_conv2d_bn_stack(x, [self.unfolded()])
        if folds:
            return run_block(self, x, self.folded())
        y = sep_conv2d(x, *self._weights(), dilation=layers.dilation)
        return norm_relu_pool(self._batch_norm(), y, layers.pool) if layers.relu else y

    def is_as_recognised(self) -> bool:
        """Whether its layers are those that `fuse` saw, and have no hooks."""
        fusion = self._fusion
        if fusion is None or fusion.snapshot.holds():
            return fusion is not None
        if not fusion.told and not torch.compiler.is_compiling():
            difference = fusion.snapshot.difference()
            if difference is not None:
                fusion.told = True
                warnings.warn(
                    f"a fused {type(self).__name__} runs as it was written, since {difference}; "
                    "fuse(model) again looks at it anew",
                    stacklevel=4,
                )
        return False

    def can_fold(self) -> bool:
        fusion = self._fusion
        if fusion is None or not fusion.layers.relu:
            return False
        return self._norm_folds() and self.is_as_recognised()

    may_join = can_fold

    def folded(self) -> BlockParameters:
        bn, layers = self._batch_norm(), self._layers()
        pointwise, time, freq, bias = self._weights()
        if bn is None:
            assert bias is not None
            return BlockParameters(pointwise, time, freq, bias, layers.dilation, layers.pool)
        assert self._fusion is not None
        taps = self._fusion.cache(bn, time, freq)
        assert taps is not None  # as can_fold says
        return BlockParameters(pointwise, *taps, layers.dilation, layers.pool)

    def unfolded(self) -> BatchNormBlockParameters:
        """Weights and batch norm as they are."""
        layers, norm = self._layers(), norm_of(self._batch_norm())
        pointwise, time, freq, _ = self._weights()
        geometry = layers.dilation, layers.pool
        return BatchNormBlockParameters(pointwise, time, freq, *norm, *geometry)

    def as_block(self) -> SepConvBlock:
        """A SepConvBlock of the same weights, not shared."""
        layers, bn = self._layers(), self._batch_norm()
        weights = self._weights()
        with torch.device("meta"):  # draws no random weights
            cout, cin = weights[0].shape
            block = SepConvBlock(cin, cout, dilation=layers.dilation, pool=layers.pool)
        names = ("pointwise", "time_taps", "freq_taps", "bias")
        for name, weight in zip(names, weights, strict=True):
            if weight is not None:
                value = weight.detach().clone()
                setattr(block.conv, name, nn.Parameter(value, requires_grad=weight.requires_grad))
        block.bn = bn
        return block.train(self.training)

    def _layers(self) -> Layers:
        assert self._fusion is not None
        return self._fusion.layers

    def _norm_folds(self) -> bool:
        bn = self._batch_norm()
        return bn is None if self._layers().bn is None else is_foldable(bn)

    def _norm_trains(self) -> bool:
        layers, bn = self._layers(), self._batch_norm()
        return layers.relu and bn is not None and is_plain(bn)

    def _batch_norm(self) -> Any:
        path = self._layers().bn
        return None if path is None else self._layer(path)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Those of `sep_conv2d`."""
        layers = self._layers()
        pointwise, time, freq = map(self._layer, (layers.pointwise, layers.time, layers.freq))
        bias = None
        for conv in (time, freq) if layers.biased else ():
            if conv.bias is not None:
                bias = conv.bias if bias is None else bias + conv.bias
        # (Cout, Cin, 1, 1) -> (Cout, Cin); (C, 1, 3, 1) -> (C, 3)
        weights = pointwise.weight.flatten(1), time.weight.flatten(1), freq.weight.flatten(1)
        return (*weights, bias)

    def _layer(self, path: str) -> Any:
        layer: Any = self
        for name in path.split("."):
            layer = layer._modules[name]  # get_submodule takes several times as long
        return layer

    def extra_repr(self) -> str:
        if self._fusion is None:
            return str(behind(self).extra_repr(self))
        return f"fused, dilation={self._layers().dilation}, pool={self._layers().pool}"


def fuse(model: nn.Module) -> FuseReport:
    """Gives every module in `model` that is one eager separable block or operator a fused forward.

    The modules stay what they are, so optimisers, state_dicts and training go on as before;
    `unfuse` undoes it. A module is left alone, with the reason in the report, when its forward does
    anything the fused operator would not (stride, other dilations, hooks, switched gradients or
    autocast, code that torch.fx cannot trace), or holds several blocks inline: give each a module
    of its own. What is changed inside a block later is honoured, by the forward as it was written;
    calling this again recognises it anew.

    Blocks that a forward calls one after the other, with nothing else reading the maps between
    them, run as one streaming pass in inference (eval mode, without gradients, autocast and
    compilation). They stay where they are, and one that gets hooks or is replaced leaves the pass.

    Returns:
        FuseReport, whose str() lists what was replaced and what was left alone and why.
    """
    report = FuseReport()
    _fuse_children(model, "", report, set())
    if not report.replaced and not report.left_alone and _has_candidate(model):
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
    for module in list(model.modules()):
        unchain(module)
        _restore(module)


def _restore(module: nn.Module) -> None:
    if isinstance(module, FusedSepConv):
        take_off(module)
        vars(module).pop("_fusion", None)


def _fuse_children(
    parent: nn.Module, prefix: str, report: FuseReport, seen: set[nn.Module]
) -> None:
    for name, child in list(parent._modules.items()):
        if child is None or child in seen or isinstance(child, (SepConv2d, SepConvBlock)):
            continue
        path = f"{prefix}{name}"
        seen.add(child)
        if isinstance(child, FusedSepConv):
            if child._fusion is not None and child._fusion.snapshot.difference() is None:
                continue
            _restore(child)
        if not _has_candidate(child):
            continue
        found = _fuse_one(child)
        if isinstance(found, Layers):
            report.replaced[path] = _describe(child, found)
            continue
        before = len(report.replaced) + len(report.left_alone)
        _fuse_children(child, f"{path}.", report, seen)
        explained = len(report.replaced) + len(report.left_alone) > before
        if not explained or any(_is_operator(part) for part in child.children()):
            report.left_alone[path] = found


def _fuse_one(module: nn.Module) -> Layers | str:
    hidden = [name for name in _OWN if hasattr(module, name)]
    if hidden:
        return f"it has a {hidden[0]} of its own, which the fused block's would hide"
    found = recognise(module)
    if isinstance(found, Layers):
        fusion = _Fusion(found, Snapshot(module, found.bn))
        if not put(FusedSepConv, module):
            return f"its class, {type(module).__name__}, cannot be extended"
        vars(module)["_fusion"] = fusion
    return found


_OWN = sorted(  # what somebody's class may not have under the same name
    name
    for kind in (FusedSepConv, Front, Block)
    for name in vars(kind)
    if not name.startswith("__") and not hasattr(nn.Module, name)
)


def _describe(module: nn.Module, layers: Layers) -> str:
    conv = module.get_submodule(layers.pointwise)
    assert isinstance(conv, nn.Conv2d)
    channels = f"{conv.in_channels} -> {conv.out_channels}, dilation {layers.dilation}"
    if not layers.relu:
        return f"separable convolution {channels}"
    return f"separable block {channels}, pool {layers.pool}"


def _has_candidate(module: nn.Module) -> bool:
    """Whether it holds layers of which somebody might think that they are fused."""
    fused = {m for f in module.modules() if isinstance(f, FusedSepConv) for m in f.modules()}
    return any(
        isinstance(conv, nn.Conv2d)
        and conv is not module
        and conv not in fused
        and (conv.groups == conv.in_channels > 1 or conv.kernel_size in ((3, 1), (1, 3)))
        for conv in module.modules()
    )


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


def _is_operator(module: nn.Module) -> bool:
    """Whether only the convolutions are fused, where one would expect the block around them."""
    return isinstance(module, FusedSepConv) and not _is_block(module)


def _is_block(module: nn.Module | None) -> bool:
    return (
        isinstance(module, FusedSepConv)
        and module._fusion is not None
        and module._fusion.layers.relu
    )
