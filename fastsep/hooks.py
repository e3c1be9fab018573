"""Whether calling a module does something else than the forward of its class."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def has_hooks(module: nn.Module) -> bool:
    """Whether the module itself has hooks, another forward than its class, or its own __call__."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or type(module).__call__ is not nn.Module.__call__
    )


def has_global_hooks() -> bool:
    """Whether there are hooks for every module that is called."""
    return bool(_has_any_global_hook())
