"""`fold_batchnorm(model)`: a copy for inference, with nothing left to fold on the fly."""

import copy
from typing import TypeVar

from torch import nn

from fastsep.fusion import FusedSepConv
from fastsep.modules import SepConvBlock

Module = TypeVar("Module", bound=nn.Module)


def fold_batchnorm(module: Module, *, eps: float | None = None) -> Module:
    """A copy of `module` for inference: every fastsep block in it with its batch norm folded away.

    The copy is in eval mode; `module` is left as it is. Fused blocks (see `fuse`) become
    `SepConvBlock`s in the copy, unless they got hooks or other layers inside.

    Args:
        module: any module, a block itself included.
        eps: instead of each batch norm's own; `eps=0` reproduces software that leaves it out of
            the square root.

    Raises:
        ValueError: a batch norm without running statistics, or one of variance 0 under `eps=0`.
    """
    folded = copy.deepcopy(module).eval()
    for parent in list(folded.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, FusedSepConv) and child.layers.bn and child.is_as_recognised():
                parent._modules[name] = child.as_block()
    for path, block in folded.named_modules():
        if isinstance(block, SepConvBlock):
            block.fold_(eps)
            if not all(parameter.isfinite().all() for parameter in block.parameters()):
                raise ValueError(
                    f"after folding, {path or 'the block'} holds weights that are NaN or infinite: "
                    "check its variances (eps=0 cannot fold a variance of 0)"
                )
    return folded
