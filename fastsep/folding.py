"""`fold_batchnorm(model)`: a copy for inference, with nothing left to fold on the fly."""

import copy
from typing import Any, TypeVar

from torch import nn

from fastsep.batchnorm import BatchNorm
from fastsep.fusion import FusedSepConv
from fastsep.modules import SepConvBlock
from fastsep.streaming import Block

Module = TypeVar("Module", bound=nn.Module)


def fold_batchnorm(module: Module, *, eps: float | None = None) -> Module:
    """A copy of `module` for inference: every fastsep block in it with its batch norm folded away.

    The copy is in eval mode; `module` is left as it is. Fused blocks (see `fuse`) become
    `SepConvBlock`s in the copy. Parametrised weights are those of the moment; what needed no
    gradients needs none. Blocks with hooks or layers of other kinds inside stay as they are.

    Args:
        module: any module, a block itself included.
        eps: instead of each batch norm's own; `eps=0` reproduces software that leaves it out of
            the square root.

    Raises:
        ValueError: a batch norm without running statistics, or one of variance 0 under `eps=0`; a
            block that stays as it is although `eps` is given.
    """
    folded: Any = copy.deepcopy(module).eval()
    places: dict[nn.Module, nn.Module] = {}  # block -> what takes its place, wherever it is used
    for path, part in folded.named_modules():
        if isinstance(part, Block):
            places[part] = _folded(part, path or "the block", eps)
    for parent in list(folded.modules()):
        for name, child in parent._modules.items():
            if child in places:
                parent._modules[name] = places[child]
    return places.get(folded, folded)


def _folded(block: Block, path: str, eps: float | None) -> nn.Module:
    norms = [layer for layer in block.modules() if isinstance(layer, BatchNorm)]
    if not norms and not isinstance(block, FusedSepConv):
        return block
    if any(bn.running_mean is None for bn in norms):
        raise ValueError(f"the batch norm of {path} keeps no running statistics to fold")
    if not block.can_fold():
        if eps is not None and norms:
            raise ValueError(
                f"eps={eps} cannot be applied to {path}, whose batch norm cannot be folded: remove "
                "hooks first (prune.remove, remove_weight_norm, handle.remove) and other layers"
            )
        return block
    own = block.as_block() if isinstance(block, FusedSepConv) else block
    assert isinstance(own, SepConvBlock)
    own.fold_(eps)
    if not all(parameter.isfinite().all() for parameter in own.parameters()):
        raise ValueError(
            f"after folding, {path} holds weights that are NaN or infinite: "
            "check its variances (eps=0 cannot fold a variance of 0)"
        )
    return own
