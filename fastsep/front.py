"""A class put in front of that of a module which exists: another forward, everything else its own.

The module stays the object it was, an instance of its class, with that class's methods, state,
hooks and place in the model; copies and pickles keep what is in front.
"""

import copyreg
from functools import cache, wraps
from typing import Any

import torch
from torch import fx, nn


class Front:
    """Base of classes that are put in front; says what the forward is instead."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def __init_subclass__(cls) -> None:  # that of the module's class may keep a list
        pass

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(protocol)
        if made[0] is copyreg.__newobj__ and made[1] == (type(self),):  # type: ignore[attr-defined]
            return (_new, type(self).__bases__, *made[2:])
        return made


def put(front: Any, module: nn.Module) -> bool:
    """Puts a subclass of Front in front of the module's class; False where that cannot be done."""
    usual = not isinstance(module, (fx.GraphModule, torch.jit.ScriptModule))
    if not usual or "forward" in vars(module):
        return False
    try:
        kind: Any = type(module)
        module.__class__ = _fronted(front, kind)
    except Exception:  # whatever a foreign class has against it
        return False
    return True


def take_off(module: nn.Module) -> None:
    """The opposite of `put`."""
    module.__class__ = behind(module)


def behind(module: Any) -> Any:
    """The class of the module before `put`."""
    return type(module).__bases__[1]


@cache
def _fronted(front: Any, base: Any) -> Any:
    @wraps(base.forward)  # torch.fx asks for what is wrapped
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return front.run(self, *args, **kwargs)

    members = {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__}
    metaclass: Any = type(base)
    return metaclass(base.__name__, (front, base), members)


def _new(front: Any, base: Any) -> nn.Module:
    cls = _fronted(front, base)
    return cls.__new__(cls)
