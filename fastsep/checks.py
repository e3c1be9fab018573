"""Arguments that do not fit are answered in words: by name, with what was expected and what came.

A name that starts with `check` raises or returns nothing; one that starts with `checked` returns
its arguments in the one form that the operators take.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsep.dispatch import autocasts

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class BlockParameters(NamedTuple):
    """One block of a stack: pointwise (Cout, Cin), taps (Cout, 3), bias (Cout,), geometry."""

    pointwise: Tensor
    time_taps: Tensor
    freq_taps: Tensor
    bias: Tensor
    dilation: int = 2
    pool: int = 2


class BatchNormBlockParameters(NamedTuple):
    """One block of a stack in training: a convolution without bias, and `nn.BatchNorm2d`'s state.

    Attributes:
        pointwise, time_taps, freq_taps: (Cout, Cin), (Cout, 3), (Cout, 3).
        gamma, beta: (Cout,), or None for 1 and 0.
        running_mean, running_var: (Cout,), or None: then the statistics are always the batch's.
        num_batches_tracked: integer (), or None.
        training: normalise with the batch's statistics and let the running ones follow; False:
            normalise with the running ones, which stay (frozen statistics).
        momentum: the share of the batch in the running statistics; None for the mean over all
            batches that were tracked.
        eps: what is added to the variance.
        dilation, pool: geometry, as in `BlockParameters`.
    """

    pointwise: Tensor
    time_taps: Tensor
    freq_taps: Tensor
    gamma: Tensor | None = None
    beta: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches_tracked: Tensor | None = None
    training: bool = True
    momentum: float | None = 0.1
    eps: float = 1e-5
    dilation: int = 2
    pool: int = 2

    @property
    def is_frozen(self) -> bool:
        """Whether it normalises with the running statistics."""
        return not self.training and self.running_mean is not None


def check_input(x: Tensor) -> None:
    """x is a map (N, C, T, F) of a dtype that the operators compute in."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, T, F), got shape {tuple(x.shape)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x must be float32, float64, bfloat16 or float16, got {x.dtype}")


def check_geometry(where: str, dilation: int, pool: int = 1) -> None:
    for name, value in (("dilation", dilation), ("pool", pool)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{where}{name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{where}{name} must be at least 1, got {value}")


def check_compute(compute: str | None) -> None:
    if compute not in (None, "bf16"):
        raise ValueError(f'compute must be None or "bf16", got {compute!r}')


def check_poolable(shape: Sequence[int], name: str = "x") -> None:
    """Global pooling has something to take the mean and the maximum of."""
    if 0 in shape[2:]:
        raise ValueError(f"{name} must have at least one frame and one bin, got {tuple(shape)}")


def check_block(
    x: Tensor,
    channels: int,
    where: str,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor | None,
    *,
    needs_bias: bool = False,
) -> None:
    """Weights that take `channels` channels, of x's dtype and device; `where` precedes names."""
    if not isinstance(pointwise, Tensor) or pointwise.dim() != 2:
        got = tuple(pointwise.shape) if isinstance(pointwise, Tensor) else type(pointwise).__name__
        raise ValueError(f"{where}pointwise must be a tensor of shape (Cout, Cin), got {got}")
    out = pointwise.shape[0]
    _check_weight(x, where, "pointwise", pointwise, (out, channels), "(Cout, Cin)")
    _check_weight(x, where, "time_taps", time_taps, (out, 3), "(Cout, 3)")
    _check_weight(x, where, "freq_taps", freq_taps, (out, 3), "(Cout, 3)")
    if bias is not None or needs_bias:
        _check_weight(x, where, "bias", bias, (out,), "(Cout,)")


def check_blocks(x: Tensor, blocks: Sequence[BlockParameters]) -> None:
    """Each block takes the channels that the one before gives."""
    channels = x.shape[1]
    for i, block in enumerate(blocks):
        check_block(x, channels, f"blocks[{i}].", *block[:4], needs_bias=True)
        channels = block.pointwise.shape[0]


def check_bn_blocks(x: Tensor, blocks: Sequence[BatchNormBlockParameters], where: str) -> None:
    """Each block takes the channels that the one before gives, and has values to normalise.

    where: what to call a block, "{}" standing for its number.
    """
    clips, channels, frames, bins = x.shape
    for i, block in enumerate(blocks):
        here = where.format(i)
        check_block(x, channels, here, *block[:3], None)
        channels = block.pointwise.shape[0]
        for name in ("gamma", "beta", "running_mean", "running_var"):
            if (tensor := getattr(block, name)) is not None:
                _check_weight(x, here, name, tensor, (channels,), "(Cout,)")
        if not block.is_frozen and clips * frames * bins == 1:
            raise ValueError(few_values(torch.Size((clips, channels, frames, bins))))
        frames, bins = frames // block.pool, bins // block.pool


def few_values(size: torch.Size) -> str:
    """What PyTorch says where a channel has one value, and so no variance."""
    return f"Expected more than 1 value per channel when training, got input size {size}"


def check_head(
    x: Tensor, blocks: Sequence[BlockParameters], layers: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """A head behind a stack: there is something to pool, and the layers take the channels."""
    channels, (frames, bins) = blocks[-1].pointwise.shape[0], x.shape[2:]
    for block in blocks:
        frames, bins = frames // block.pool, bins // block.pool
    check_poolable((x.shape[0], channels, frames, bins), "the last block's map")
    check_layers(x, channels, layers)


def check_layers(x: Tensor, width: int, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Of x's dtype; each linear layer takes what the one before gives, the first `width`."""
    for i, (weight, bias) in enumerate(layers):
        out = weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else 0
        _check_weight(x, f"layers[{i}] ", "weight", weight, (out, width), "(out, in)")
        _check_weight(x, f"layers[{i}] ", "bias", bias, (out,), "(out,)")
        width = out


def checked_blocks(blocks: Sequence[Any]) -> list[BlockParameters]:
    """A stack's blocks as such, their geometry checked; their weights are for `check_blocks`."""
    if not blocks:
        raise ValueError("blocks is empty: a stack needs at least one block")
    return [_checked_block(i, block) for i, block in enumerate(blocks)]


def checked_bn_blocks(blocks: Sequence[Any], where: str) -> list[BatchNormBlockParameters]:
    """As `checked_blocks`, of a stack in training; the rest is for `check_bn_blocks`."""
    if not blocks:
        raise ValueError("blocks is empty: a stack needs at least one block")
    return [_checked_bn_block(where.format(i), block) for i, block in enumerate(blocks)]


def checked_layers(layers: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The weights and the biases of linear layers; whether they fit is for `check_layers`."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise TypeError(f"layers[{i}] must be a pair of tensors (weight, bias)")
    return [layer[0] for layer in layers], [layer[1] for layer in layers]


def checked_load(
    x: Tensor, affine: tuple[Tensor, Tensor] | None, stripes: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What `reference.load` takes besides x: scale and shift (F,), int32 stripes (N, S, 3)."""
    check_input(x)
    scale = shift = None
    if affine is not None:
        if not isinstance(affine, (tuple, list)) or len(affine) != 2:
            raise TypeError("affine must be a pair of tensors (scale, shift)")
        scale, shift = affine
        _check_weight(x, "affine ", "scale", scale, (x.shape[3],), "(F,)")
        _check_weight(x, "affine ", "shift", shift, (x.shape[3],), "(F,)")
    return scale, shift, None if stripes is None else _checked_stripes(x, stripes)


def _checked_block(index: int, block: Any) -> BlockParameters:
    if type(block) is not BlockParameters:
        if not isinstance(block, (tuple, list)) or not 4 <= len(block) <= 6:
            raise TypeError(
                f"blocks[{index}] must be "
                "BlockParameters(pointwise, time_taps, freq_taps, bias, dilation, pool)"
            )
        block = BlockParameters(*block)
    check_geometry(f"blocks[{index}].", block.dilation, block.pool)
    return block


def _checked_bn_block(where: str, block: Any) -> BatchNormBlockParameters:
    if not isinstance(block, BatchNormBlockParameters):
        raise TypeError(
            f"{where.removesuffix('.')} must be BatchNormBlockParameters, got "
            f"{type(block).__name__}"
        )
    check_geometry(where, block.dilation, block.pool)
    if (block.running_mean is None) != (block.running_var is None):
        raise ValueError(f"{where}running_mean and {where}running_var go together: one is None")
    if not isinstance(block.eps, (int, float)) or not block.eps > 0:
        raise ValueError(f"{where}eps must be a positive number, got {block.eps!r}")
    if block.momentum is not None and not isinstance(block.momentum, (int, float)):
        raise TypeError(
            f"{where}momentum must be a number or None, got {type(block.momentum).__name__}"
        )
    counts = block.momentum is None and block.training and block.running_mean is not None
    if counts and block.num_batches_tracked is None:
        raise ValueError(f"{where}momentum is None, which needs num_batches_tracked")
    return block


def checked_masks(x: Tensor, stripes: Tensor) -> Tensor:
    """int32 stripes (N, K, S, 3): K sets of them for each clip."""
    shape = tuple(stripes.shape) if isinstance(stripes, Tensor) else (x.shape[0], 0, 0, 3)
    if len(shape) != 4 or shape[0] != x.shape[0] or shape[3] != 3:
        raise ValueError(
            f"stripes must be (N, K, S, 3) = ({x.shape[0]}, K, S, 3) here, got {shape}"
        )
    return _as_int32(x, stripes)


def _checked_stripes(x: Tensor, stripes: Tensor) -> Tensor:
    shape = tuple(stripes.shape) if isinstance(stripes, Tensor) else (x.shape[0], 0, 3)
    if len(shape) != 3 or shape[0] != x.shape[0] or shape[2] != 3:
        raise ValueError(f"stripes must be (N, S, 3) = ({x.shape[0]}, S, 3) here, got {shape}")
    return _as_int32(x, stripes)


def _as_int32(x: Tensor, stripes: Tensor) -> Tensor:
    if not isinstance(stripes, Tensor):
        raise TypeError(f"stripes must be a tensor, got {type(stripes).__name__}")
    if stripes.is_floating_point() or stripes.is_complex() or stripes.dtype == torch.bool:
        raise TypeError(f"stripes must hold integers, got {stripes.dtype}")
    if stripes.device != x.device:
        raise ValueError(f"stripes is on {stripes.device} but x is on {x.device}")
    positions = stripes.long()
    if stripes.dtype == torch.uint64:  # the upper half of which int64 makes negative
        positions = torch.where(positions < 0, 2**31 - 1, positions)
    return positions.clamp(-(2**31), 2**31 - 1).to(torch.int32)


def _check_weight(
    x: Tensor, where: str, name: str, w: Tensor | None, shape: tuple[int, ...], meaning: str
) -> None:
    if not isinstance(w, Tensor):
        raise TypeError(f"{where}{name} must be a tensor, got {type(w).__name__}")
    if w.shape != shape:
        raise ValueError(f"{where}{name} must be {meaning} = {shape} here, got {tuple(w.shape)}")
    if w.device != x.device:
        raise ValueError(
            f"{where}{name} is on {w.device} but x is on {x.device}: move one to the other"
        )
    if w.dtype != x.dtype and not _casts(w, x):
        raise TypeError(f"{where}{name} is {w.dtype} but x is {x.dtype}: convert one to the other")


def _casts(*tensors: Tensor) -> bool:
    """Whether autocast gives the tensors one dtype."""
    return autocasts(tensors[0].device.type) and all(
        t.is_floating_point() and t.dtype != torch.float64 for t in tensors
    )
