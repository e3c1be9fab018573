"""Runs of blocks that a foreign forward calls one after the other, computed as one stack.

In a run a block hands on a *promise* of its map, and the last one computes the maps of all in one
streaming pass. Whatever else touches a promise gets the map, computed for it: what is believed of
the forward decides about speed, never about results. Promises are made only while the module that
chains the blocks runs, in inference, and are kept when it returns.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastsep.checks import BlockParameters
from fastsep.dispatch import is_transformed, tree_map_only, wrapper_tensor
from fastsep.front import Front, behind, put, take_off
from fastsep.functional import sep_conv2d_block, sep_conv2d_stack
from fastsep.hooks import has_global_hooks, has_hooks
from fastsep.layouts import memory_format


class Promise(Tensor):
    """A map (N, C, T, F) that is computed when somebody looks at it."""

    _x: Tensor  # what the first block reads
    _blocks: list[BlockParameters]
    _map: Tensor | None

    @staticmethod
    def __new__(cls, x: Tensor, blocks: list[BlockParameters]) -> "Promise":
        frames, bins = x.shape[2:]
        for block in blocks:
            frames, bins = frames // block.pool, bins // block.pool
        shape = x.shape[0], len(blocks[-1].pointwise), frames, bins
        strides = torch.empty(shape, device="meta", memory_format=memory_format(x)).stride()
        promise = wrapper_tensor(cls, shape, strides=strides, dtype=x.dtype, device=x.device)
        promise._x, promise._blocks, promise._map = x, blocks, None
        return promise

    def kept(self) -> Tensor:
        """The map."""
        if self._map is None:
            # As where the promise was made, wherever this is.
            with torch.no_grad(), torch.autocast(self._x.device.type, enabled=False):
                self._map = _run_blocks(self._x, self._blocks)
        return self._map

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = keep((args, kwargs or {}))
        return function(*args, **kwargs)

    __torch_dispatch__ = __torch_function__  # type: ignore[assignment]  # for callers from C++


def keep(values: Any) -> Any:
    """The values, nested as they are, with maps in the place of promises."""
    return tree_map_only(Promise, Promise.kept, values)


class Block(nn.Module):
    """A block that can be part of a run."""

    def can_fold(self) -> bool:
        """Whether its layers, as they are now, are what one pass over `folded` computes.

        Not so while batch norm uses the statistics of the batch or where there are hooks. Asking
        computes no weights: a parametrisation may change with every look.
        """
        raise NotImplementedError

    def folded(self) -> BlockParameters:
        """The weights of that pass; perhaps a cache's own, so for reading only."""
        raise NotImplementedError

    def may_join(self) -> bool:
        """Whether that pass is all that the block does."""
        raise NotImplementedError

    def inference_parameters(self) -> BlockParameters | None:
        """The block's folded weights, for the caller to keep; None while it cannot be folded."""
        if not self.can_fold():
            return None
        p = self.folded()
        taps = p.time_taps.clone(), p.freq_taps.clone(), p.bias.clone()
        return BlockParameters(p.pointwise, *taps, p.dilation, p.pool)


def learns(module: nn.Module) -> bool:
    """Whether a step may follow, for which folding would be in the way."""
    return module.training and torch.is_grad_enabled()


class _Scope(threading.local):
    """What the forwards that now run on a thread have promised.

    followed: ids of the blocks that may promise; promises: those made since the outermost of these
    forwards was called.
    """

    followed: frozenset[int] = frozenset()
    promises: tuple[weakref.ref[Promise], ...] = ()
    depth = 0


_scope = _Scope()


def run_block(block: Block, x: Tensor, p: BlockParameters) -> Tensor:
    """A block whose folded weights are `p` in one pass, or in a run."""
    blocks = [p]
    if type(x) is Promise:
        if x._map is not None or not _is_inference(x._x):
            x = x.kept()
        else:
            blocks, x = [*x._blocks, p], x._x
    if torch.compiler.is_compiling() or id(block) not in _scope.followed or not _is_inference(x):
        return _run_blocks(x, blocks)
    promise = Promise(x, blocks)
    _scope.promises = (*_scope.promises, weakref.ref(promise))
    return promise


def _run_blocks(x: Tensor, blocks: list[BlockParameters]) -> Tensor:
    if len(blocks) > 1:
        return sep_conv2d_stack(x, blocks)
    p = blocks[0]
    return sep_conv2d_block(x, *p[:4], dilation=p.dilation, pool=p.pool)


def _is_inference(x: Tensor) -> bool:
    """Whether nothing differentiates, transforms, traces or casts what is done with a map x.

    And whether it is a map: what is none is for the operator to refuse.
    """
    return not (
        torch.is_grad_enabled()
        or type(x) is not Tensor
        or x.dim() != 4
        or x.device.type not in ("cpu", "cuda")
        or torch.is_autocast_enabled(x.device.type)
        or torch.jit.is_tracing()
        or is_transformed()
    )


def chain(owner: nn.Module, after: dict[str, str]) -> bool:
    """Lets the module run blocks as stacks, if it can.

    after: path of a block -> path of the one that alone reads its map.
    """
    if not isinstance(owner, _Chaining) and ("_after" in vars(owner) or not put(_Chaining, owner)):
        return False
    vars(owner)["_after"] = after
    return True


def unchain(owner: nn.Module) -> None:
    """The opposite of `chain`."""
    if isinstance(owner, _Chaining):
        take_off(owner)
        vars(owner).pop("_after", None)


class _Chaining(Front):
    """In front of a module's class: its forward makes promises."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        forward = behind(self).forward
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return forward(self, *args, **kwargs)
        return _run(self, forward, args, kwargs)


def _run(owner: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    followed = frozenset(_followed(owner))
    if not followed:
        return forward(owner, *args, **kwargs)
    with _promising(followed):
        y = forward(owner, *args, **kwargs)
        if _scope.depth == 1:
            alive = [promise for ref in _scope.promises if (promise := ref()) is not None]
            for promise in alive:  # the forward did something else than was believed
                promise.kept()
            y = keep(y) if alive else y
        return y


@contextmanager
def _promising(followed: frozenset[int]) -> Iterator[None]:
    before = _scope.followed
    _scope.followed, _scope.depth = before | followed, _scope.depth + 1
    try:
        yield
    finally:
        _scope.followed, _scope.depth = before, _scope.depth - 1
        if _scope.depth == 0:
            _scope.promises = ()


def _followed(owner: nn.Module) -> Iterator[int]:
    """The blocks of a module whose maps, as things are now, go to one other block only."""
    if has_global_hooks():
        return
    after: dict[str, str] = vars(owner).get("_after", {})
    if behind(owner).forward is nn.Sequential.forward:
        after = {**after, **dict(pairwise(owner._modules))}
    blocks = {path: _joining(owner, path) for path in {*after, *after.values()}}
    for path, next_path in after.items():
        block = blocks[path]
        if block is not None and blocks[next_path] is not None:
            yield id(block)


def _joining(owner: nn.Module, path: str) -> Block | None:
    """The block at a path, if nobody would notice that it is called in a run."""
    module: nn.Module | None = owner
    *containers, name = path.split(".")
    for container in containers:
        module = module._modules.get(container)  # type: ignore[union-attr]
        if module is None or has_hooks(module):
            return None
    assert module is not None
    block = module._modules.get(name)
    if not isinstance(block, Block) or has_hooks(block):
        return None
    return block if block.may_join() else None
