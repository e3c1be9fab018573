"""Whether calling a module does something else than the forward of its class."""

from torch import nn

from fastsep.dispatch import has_global_hooks as has_global_hooks


def has_hooks(module: nn.Module) -> bool:
    """Whether the module itself has hooks, another forward than its class, or its own __call__.

    Or was compiled by itself, which others should not look into.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
        or type(module).__call__ is not nn.Module.__call__
    )
