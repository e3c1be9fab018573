"""A block's layers as `fuse` saw them, and whether they still are."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from fastsep.hooks import has_hooks

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_USUAL = frozenset(vars(nn.Module()))  # what every module has: layers, weights, mode, hooks


@dataclass
class _Part:
    path: str
    module: nn.Module
    kind: type[nn.Module]
    biased: bool
    names: tuple[str, ...]  # of attributes; `look` gets all in one go, since it is for every call
    values: tuple[Any, ...]
    look: Callable[[dict[str, Any]], tuple[Any, ...]]

    def has_other_forward(self) -> bool:
        kind = type(self.module)  # another when weights are parametrised, with the same forward
        other = kind is not self.kind and kind.forward is not self.kind.forward
        return other or "forward" in self.module.__dict__

    def differs_plainly(self) -> bool:
        """Whether anything but the layers is different, in words that the compiler can read."""
        module = self.module
        if self.path and has_hooks(module):
            return True
        for name, value in zip(self.names, self.values, strict=True):
            if name not in _USUAL and getattr(module, name) != value:
                return True
        return (module._parameters.get("bias") is not None) != self.biased


class Snapshot:
    """Of all that a block's forward may depend on except weights.

    Args:
        block: the module; hooks on itself, and its forward, are for the caller to mind.
        bn: path of the batch norm, which may be another; weights may get parametrised.
    """

    def __init__(self, block: nn.Module, bn: str | None) -> None:
        modules = {
            path: part
            for path, part in block.named_modules()
            if path != bn and "parametrizations" not in path.split(".")
        }
        self._links = [
            (parent, name, modules[path])
            for prefix, parent in modules.items()
            for name in parent._modules
            if (path := f"{prefix}.{name}" if prefix else name) in modules
        ]
        self._parts = [_part(path, part) for path, part in modules.items()]

    def holds(self) -> bool:
        """Whether nothing has changed, and no layer has got hooks."""
        for parent, name, child in self._links:
            if parent._modules.get(name) is not child:
                return False
        if torch.compiler.is_compiling():
            return not any(part.differs_plainly() for part in self._parts)
        try:
            for part in self._parts:
                module = part.module
                if (
                    part.look(module.__dict__) != part.values
                    or (module._parameters.get("bias") is not None) != part.biased
                    or (part.path and part.has_other_forward())
                ):
                    return False
        except (KeyError, ValueError, RuntimeError):  # deleted; arrays that are no longer the same
            return False
        return True

    def difference(self) -> str | None:
        """What has changed, hooks aside, at the first look."""
        paths = {part.module: part.path for part in self._parts}
        for parent, name, child in self._links:
            if parent._modules.get(name) is not child:
                return f"{paths[child]} is another layer"
        for part in self._parts:
            where, state = f"{part.path}." if part.path else "", vars(part.module)
            for name, value in zip(part.names, part.values, strict=False):
                if name not in _USUAL and (name not in state or not _same(state[name], value)):
                    now = repr(state[name]) if name in state else "gone"
                    return f"{where}{name} is {now}, was {value!r}"
            if (part.module._parameters.get("bias") is not None) != part.biased:
                return f"{where}bias is {'gone' if part.biased else 'new'}"
            if part.path and part.has_other_forward():
                return f"{part.path} has another forward"
        return None


def _part(path: str, module: nn.Module) -> _Part:
    state = vars(module)
    names = [k for k, v in state.items() if k not in _USUAL and not isinstance(v, Tensor)]
    values = [_copied(state[name]) for name in names]
    if path:
        names += _HOOKS
        values += [{} for _ in _HOOKS]  # there are to be none
    else:  # an itemgetter of fewer than two names gives no tuple
        names += ["_modules", "_modules"]
        values += [module._modules, module._modules]
    biased = module._parameters.get("bias") is not None
    look = itemgetter(*names)
    return _Part(path, module, type(module), biased, tuple(names), tuple(values), look)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict, set)) else value


def _same(a: Any, b: Any) -> bool:
    try:
        return bool((a,) == (b,))
    except (ValueError, RuntimeError):
        return False
