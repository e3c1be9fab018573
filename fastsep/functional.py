"""What users call: arguments checked, backend chosen, operator run.

All functions are differentiable once in every floating argument, deterministic, and never return a
view of an input. float16 and bfloat16 accumulate in float32 and round once. Under autocast the
arguments are cast as a convolution's are. Under the transforms of torch.func and in forward mode
everything runs in plain PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp.autocast_mode import _cast
from torch.autograd import forward_ad

from fastsep import reference
from fastsep.backends import select
from fastsep.ops import memory_format, needs_gradients, ops

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class BlockParameters(NamedTuple):
    """One block of a stack: pointwise (Cout, Cin), taps (Cout, 3), bias (Cout,), geometry."""

    pointwise: Tensor
    time_taps: Tensor
    freq_taps: Tensor
    bias: Tensor
    dilation: int = 2
    pool: int = 2


def sep_conv2d(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 2,
) -> Tensor:
    """1x1 convolution followed by the sum of a dilated 3x1 and a dilated 1x3 depthwise convolution.

        z = pointwise x
        y[c, t, f] = sum_k time_taps[c, k] z[c, t + dilation (k - 1), f]
                   + sum_k freq_taps[c, k] z[c, t, f + dilation (k - 1)] + bias[c]

    z counts as 0 outside the map, so T and F are kept.

    Args:
        x: (N, Cin, T, F) float32, float64, bfloat16 or float16, any strides, any size including 0.
        pointwise: (Cout, Cin), of x's dtype and device as are all weights.
        time_taps, freq_taps: (Cout, 3).
        bias: (Cout,) or None.
        dilation: distance between taps in frames and in bins, at least 1.

    Returns:
        (N, Cout, T, F); channels_last when x is.

    Raises:
        TypeError, ValueError: arguments that do not fit together, by name.

    Source: DCASE 2021 Task 1A report of Puy, Jain and Bursuc, section 2.
    """
    _check_input(x)
    _check_geometry("", dilation)
    block = pointwise, time_taps, freq_taps, bias
    return _run("sep_conv2d", lambda: _check_block(x, x.shape[1], "", *block), x, *block, dilation)


def sep_conv2d_block(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor,
    *,
    dilation: int = 2,
    pool: int = 2,
) -> Tensor:
    """`sep_conv2d` with bias, then ReLU, then pool x pool average pooling, in one pass.

    Args: as `sep_conv2d`; pool: side and stride of the pooling window, at least 1. Rows and columns
    that do not fill a window are dropped.

    Returns:
        (N, Cout, T // pool, F // pool); channels_last when x is.
    """
    _check_input(x)
    _check_geometry("", dilation, pool)
    block = pointwise, time_taps, freq_taps, bias

    def check() -> None:
        _check_block(x, x.shape[1], "", *block, needs_bias=True)

    return _run("sep_conv2d_block", check, x, *block, dilation, pool)


def sep_conv2d_stack(
    x: Tensor,
    blocks: Sequence[BlockParameters],
    *,
    affine: tuple[Tensor, Tensor] | None = None,
    stripes: Tensor | None = None,
    compute: str | None = None,
) -> Tensor:
    """Consecutive blocks as one streaming pass that keeps the maps between them in cache.

    Args:
        x: (N, C, T, F), as for `sep_conv2d`.
        blocks: at least one; each as the arguments of `sep_conv2d_block`.
        affine: per-bin (scale, shift), each (F,): the first block sees `scale * x + shift`.
        stripes: integers (N, S, 3) of (axis, start, stop), applied after the affine: positions
            start <= p < stop along axis 0 (time) or 1 (frequency) become 0.
        compute: "bf16" lets float32 maps be rounded to bfloat16 on their way into the 1x1
            convolutions, where the machine has dot products for it; sums stay in float32. For
            inference: with gradients the stack runs as without it.

    Returns:
        (N, Cout of the last block, T', F') with T' = T // pool // pool ... over the blocks.
    """
    _check_input(x)
    if not blocks:
        raise ValueError("blocks is empty: a stack needs at least one block")
    blocks = [_as_block(i, block) for i, block in enumerate(blocks)]
    if compute not in (None, "bf16"):
        raise ValueError(f'compute must be None or "bf16", got {compute!r}')
    scale, shift, stripes = _checked_load(x, affine, stripes)

    def check() -> None:
        channels = x.shape[1]
        for i, block in enumerate(blocks):
            _check_block(x, channels, f"blocks[{i}].", *block[:4], needs_bias=True)
            channels = block.pointwise.shape[0]

    if _backend(x) in ("cpu", "triton"):
        columns = [list(column) for column in zip(*blocks, strict=True)]
        bf16 = compute == "bf16"
        return _run("sep_conv2d_stack", check, x, *columns, scale, shift, stripes, bf16)
    check()
    y = _plain(reference.load, x, scale, shift, stripes)
    for block in blocks:
        y = sep_conv2d_block(y, *block[:4], dilation=block.dilation, pool=block.pool)
    return y.contiguous(memory_format=memory_format(x))  # also past a block without channels


def global_pool_mlp(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """The network's tail: global pooling, then linear layers with a ReLU between them.

    Pooling takes the mean over F, then its maximum over T plus its mean over T.

    Args:
        x: (N, C, T, F), T and F at least 1; dtypes and strides as for `sep_conv2d`.
        layers: (weight, bias) of each layer, (out, in) and (out,), as `nn.Linear` holds them; the
            first takes C inputs. Without layers the result is what pooling gives.

    Returns:
        (N, outputs of the last layer, or C).

    Source: Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks", 2020.
    """
    _check_input(x)
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have at least one frame and one bin, got {tuple(x.shape)}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise TypeError(f"layers[{i}] must be a pair of tensors (weight, bias)")
    weights, biases = [layer[0] for layer in layers], [layer[1] for layer in layers]

    def check() -> None:
        width = x.shape[1]
        for i, (weight, bias) in enumerate(layers):
            out = weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else 0
            _check_weight(x, f"layers[{i}] ", "weight", weight, (out, width), "(out, in)")
            _check_weight(x, f"layers[{i}] ", "bias", bias, (out,), "(out,)")
            width = out

    return _run("global_pool_mlp", check, x, weights, biases)


def _run(name: str, check: Callable[[], None], x: Tensor, *args: Any) -> Tensor:
    """Runs an operator on arguments in which `check` finds what is wrong.

    Plain inference on a CPU is so fast for one clip that checks in Python would show, as would
    autograd, which is Python for these operators. The C++ kernels check for themselves; only if
    they refuse has `check` the better words for it.
    """
    backend = _backend(x)
    operator = getattr(ops, name)
    if backend == "cpu" and _is_plain_inference(x, args):
        try:
            with torch._C._AutoDispatchBelowAutograd():
                return operator(x, *args)
        except Exception as error:
            refused = error
        check()
        raise refused
    check()
    if backend == "reference":
        return _plain(getattr(reference, name), x, *args)
    return operator(x, *args)


def _backend(x: Tensor) -> str:
    """As `select`, but what PyTorch's own operators alone know how to transform goes to them."""
    backend = select(x.device)
    if torch.compiler.is_compiling():
        return backend
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return "reference" if transformed else backend


def _is_plain_inference(x: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether there is nothing to trace or differentiate, so that x's kernel will run."""
    if type(x) is not Tensor or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and needs_gradients((x, *args)))


def _plain(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """The reference, which under autocast must round where the kernels do and nowhere else."""
    device_type = x.device.type
    if _autocasts(device_type):
        x, *args = _cast((x, *args), device_type, torch.get_autocast_dtype(device_type))
        with torch.autocast(device_type, enabled=False):
            y = function(x, *args)
    else:
        y = function(x, *args)
    return y.contiguous(memory_format=memory_format(x)) if y.dim() == 4 else y


def _autocasts(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def checked_load(x: Tensor, affine: tuple[Tensor, Tensor] | None, stripes: Tensor | None) -> Tensor:
    """What the first block of a stack sees, in plain PyTorch."""
    _check_input(x)
    return reference.load(x, *_checked_load(x, affine, stripes))


def _checked_load(
    x: Tensor, affine: tuple[Tensor, Tensor] | None, stripes: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    scale = shift = None
    if affine is not None:
        if not isinstance(affine, (tuple, list)) or len(affine) != 2:
            raise TypeError("affine must be a pair of tensors (scale, shift)")
        scale, shift = affine
        _check_weight(x, "affine ", "scale", scale, (x.shape[3],), "(F,)")
        _check_weight(x, "affine ", "shift", shift, (x.shape[3],), "(F,)")
    return scale, shift, None if stripes is None else _checked_stripes(x, stripes)


def _as_block(index: int, block: Sequence[Any]) -> BlockParameters:
    if type(block) is not BlockParameters:
        if not isinstance(block, (tuple, list)) or not 4 <= len(block) <= 6:
            raise TypeError(
                f"blocks[{index}] must be "
                "BlockParameters(pointwise, time_taps, freq_taps, bias, dilation, pool)"
            )
        block = BlockParameters(*block)
    _check_geometry(f"blocks[{index}].", block.dilation, block.pool)
    return block


def _check_input(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, T, F), got shape {tuple(x.shape)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x must be float32, float64, bfloat16 or float16, got {x.dtype}")


def _check_block(
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
    if not isinstance(pointwise, Tensor) or pointwise.dim() != 2:
        got = tuple(pointwise.shape) if isinstance(pointwise, Tensor) else type(pointwise).__name__
        raise ValueError(f"{where}pointwise must be a tensor of shape (Cout, Cin), got {got}")
    out = pointwise.shape[0]
    _check_weight(x, where, "pointwise", pointwise, (out, channels), "(Cout, Cin)")
    _check_weight(x, where, "time_taps", time_taps, (out, 3), "(Cout, 3)")
    _check_weight(x, where, "freq_taps", freq_taps, (out, 3), "(Cout, 3)")
    if bias is not None or needs_bias:
        _check_weight(x, where, "bias", bias, (out,), "(Cout,)")


def _check_geometry(where: str, dilation: int, pool: int = 1) -> None:
    for name, value in (("dilation", dilation), ("pool", pool)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{where}{name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{where}{name} must be at least 1, got {value}")


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
    return _autocasts(tensors[0].device.type) and all(
        t.is_floating_point() and t.dtype != torch.float64 for t in tensors
    )


def _checked_stripes(x: Tensor, stripes: Tensor) -> Tensor:
    if not isinstance(stripes, Tensor):
        raise TypeError(f"stripes must be a tensor, got {type(stripes).__name__}")
    if stripes.dim() != 3 or stripes.shape[0] != x.shape[0] or stripes.shape[2] != 3:
        raise ValueError(
            f"stripes must be (N, S, 3) = ({x.shape[0]}, S, 3) here, got {tuple(stripes.shape)}"
        )
    if stripes.is_floating_point() or stripes.is_complex() or stripes.dtype == torch.bool:
        raise TypeError(f"stripes must hold integers, got {stripes.dtype}")
    if stripes.device != x.device:
        raise ValueError(f"stripes is on {stripes.device} but x is on {x.device}")
    return stripes.long().clamp(-(2**31), 2**31 - 1).to(torch.int32)
