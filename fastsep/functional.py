"""What users call: the operator, the block, the stacks and the network's head.

All functions are differentiable once in every floating argument, deterministic, and never return a
view of an input. float16 and bfloat16 accumulate in float32 and round once. Under autocast the
arguments are cast as a convolution's are. Under the transforms of torch.func and in forward mode,
compiled or not, and in torch.onnx.export everything runs in plain PyTorch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

import fastsep.flops  # noqa: F401  (registers its formulas)
from fastsep import reference
from fastsep.checks import (
    BatchNormBlockParameters,
    BlockParameters,
    check_block,
    check_blocks,
    check_bn_blocks,
    check_compute,
    check_geometry,
    check_head,
    check_input,
    check_layers,
    check_poolable,
    checked_blocks,
    checked_bn_blocks,
    checked_layers,
    checked_load,
    checked_masks,
)
from fastsep.dispatch import as_node, autocasts, has_kernel, run
from fastsep.layouts import in_format_of
from fastsep.ops import copy_by_copy
from fastsep.training import batch_norm, relu_pool, run_bn_stack


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
    block = pointwise, time_taps, freq_taps, bias
    if isinstance(x, fx.Proxy):
        return as_node(sep_conv2d, x, *block, dilation=dilation)
    check_input(x)
    check_geometry("", dilation)

    def check() -> None:
        check_block(x, x.shape[1], "", *block)

    return run("sep_conv2d", reference.sep_conv2d, check, x, *block, dilation)


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

    Args:
        x, pointwise, time_taps, freq_taps, bias, dilation: as for `sep_conv2d`.
        pool: side and stride of the pooling window, at least 1. Rows and columns that do not fill
            a window are dropped.

    Returns:
        (N, Cout, T // pool, F // pool); channels_last when x is.
    """
    block = pointwise, time_taps, freq_taps, bias
    if isinstance(x, fx.Proxy):
        return as_node(sep_conv2d_block, x, *block, dilation=dilation, pool=pool)
    check_input(x)
    check_geometry("", dilation, pool)

    def check() -> None:
        check_block(x, x.shape[1], "", *block, needs_bias=True)

    return run("sep_conv2d_block", reference.sep_conv2d_block, check, x, *block, dilation, pool)


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
    if isinstance(x, fx.Proxy):
        return as_node(sep_conv2d_stack, x, blocks, affine=affine, stripes=stripes, compute=compute)
    scale, shift, stripes = checked_load(x, affine, stripes)
    blocks = checked_blocks(blocks)
    check_compute(compute)

    def check() -> None:
        check_blocks(x, blocks)

    columns = [list(column) for column in zip(*blocks, strict=True)]
    bf16 = compute == "bf16"
    return run("sep_conv2d_stack", _block_by_block, check, x, *columns, scale, shift, stripes, bf16)


def sep_conv2d_masked_stack(
    x: Tensor,
    blocks: Sequence[BlockParameters],
    stripes: Tensor,
    *,
    affine: tuple[Tensor, Tensor] | None = None,
    compute: str | None = None,
    head: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """A stack on K masked copies of each clip, sharing what the masks do not touch.

    The result is that of `sep_conv2d_stack` on the copies, to the last bit, whatever K and however
    many clips and threads. A copy differs from the clip only where something it depends on is
    masked; and deep inside its stripes, where everything is masked, it is what a stack makes of
    zeros. So the clip is computed once, the zeros at the few positions where they differ, and of a
    copy only what depends on both kinds of input: stripes lie along the axes, so those positions
    are known beforehand, row by row, as sets of bits that grow with the reach of each block. All
    copies' positions in a row go through a 1x1 convolution as one list, without those where two
    copies have the same bins masked in reach. Under the report's masks that is a sixth of a copy's
    arithmetic: 30 copies cost 5.7 passes instead of 30.

    Shared on a CPU in float32 without gradients, for blocks of dilation 2 and pooling 2 of which
    the first and no other has one input channel; elsewhere the copies are computed one by one. A
    thread needs up to about 50 MB for the report's network, however large K is; the maps that come
    out take 213 kB a copy, and are never written where a head follows.

    Args:
        x, blocks, affine, compute: as for `sep_conv2d_stack`.
        stripes: integers (N, K, S, 3): K sets of stripes for each clip, each set as for
            `sep_conv2d_stack`.
        head: where it is given, `global_pool_mlp` with these layers follows, and () for pooling
            alone; T' and F' must be at least 1.

    Returns:
        (N, K, Cout of the last block, T', F'), each clip's copies channels_last. Memory of more
        than 1 MB is reused from call to call, so that such a result cannot be resized in place.
        With a head (N, K, outputs of its last layer, or Cout), to the last bit what
        `global_pool_mlp` makes of the maps.
    """
    if isinstance(x, fx.Proxy):
        return as_node(
            sep_conv2d_masked_stack, x, blocks, stripes, affine=affine, compute=compute, head=head
        )
    scale, shift, _ = checked_load(x, affine, None)
    stripes = checked_masks(x, stripes)
    blocks = checked_blocks(blocks)
    check_compute(compute)
    weights, biases = checked_layers(head or ())

    def check() -> None:
        check_blocks(x, blocks)
        if head is not None:
            check_head(x, blocks, head)

    def plain(*args: Any) -> Tensor:
        *before, pools, weights, biases = args
        y = copy_by_copy(_block_by_block, *before)
        return global_pool_mlp(y, list(zip(weights, biases, strict=True))) if pools else y

    columns = [list(column) for column in zip(*blocks, strict=True)]
    behind = head is not None, weights, biases
    rest = *columns, scale, shift, stripes, compute == "bf16", *behind
    y = run("sep_conv2d_masked_stack", plain, check, x, *rest)
    return y.unflatten(0, stripes.shape[:2])


def sep_conv2d_bn_stack(
    x: Tensor,
    blocks: Sequence[BatchNormBlockParameters],
    *,
    affine: tuple[Tensor, Tensor] | None = None,
    stripes: Tensor | None = None,
) -> Tensor:
    """Consecutive blocks with batch norm, in training: one operator, forward and backward.

    A block is `sep_conv2d` without bias, batch norm, ReLU and pool x pool average pooling. Batch
    norm is that of `nn.BatchNorm2d` in every mode: it takes its statistics from the batch and moves
    the running ones, in place; or it normalises with the running ones, which stay. For inference
    `sep_conv2d_stack` with folded batch norms is faster.

    float32 and float64 on a CPU; elsewhere the blocks run layer by layer. The same bits for any
    number of threads.

    Args:
        x, affine, stripes: as for `sep_conv2d_stack`; differentiable in x and affine.
        blocks: at least one; see `BatchNormBlockParameters`.

    Returns:
        (N, Cout of the last block, T', F') with T' = T // pool // pool ... over the blocks.

    Raises:
        TypeError, ValueError: arguments that do not fit together, by name; a channel with one value
            in the batch, which has no variance.
    """
    if isinstance(x, fx.Proxy):
        return as_node(sep_conv2d_bn_stack, x, blocks, affine=affine, stripes=stripes)
    load = checked_load(x, affine, stripes)
    return _run_bn_blocks(x, checked_bn_blocks(blocks, "blocks[{}]."), load, "blocks[{}].")


def sep_conv2d_bn_block(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    *,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    dilation: int = 2,
    pool: int = 2,
) -> Tensor:
    """One block of `sep_conv2d_bn_stack`.

    Args:
        x: (N, Cin, T, F), as for `sep_conv2d`.
        pointwise and all others: as in `BatchNormBlockParameters`.

    Returns:
        (N, Cout, T // pool, F // pool).
    """
    block = BatchNormBlockParameters(
        pointwise, time_taps, freq_taps, gamma, beta, running_mean, running_var,
        num_batches_tracked, training, momentum, eps, dilation, pool,
    )  # fmt: skip
    if isinstance(x, fx.Proxy):
        settings = {name: getattr(block, name) for name in block._fields[8:]}
        return as_node(sep_conv2d_bn_block, x, *block[:8], **settings)
    check_input(x)
    return _run_bn_blocks(x, checked_bn_blocks([block], ""), (None, None, None), "")


def global_pool_mlp(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """The network's head: global pooling, then linear layers with a ReLU between them.

    Pooling takes the mean over F, then its maximum over T plus its mean over T.

    Args:
        x: (N, C, T, F), T and F at least 1; dtypes and strides as for `sep_conv2d`.
        layers: (weight, bias) of each layer, (out, in) and (out,), as `nn.Linear` holds them; the
            first takes C inputs. Without layers the result is what pooling gives.

    Returns:
        (N, outputs of the last layer, or C).

    Source: Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks", 2020.
    """
    if isinstance(x, fx.Proxy):
        return as_node(global_pool_mlp, x, layers)
    check_input(x)
    check_poolable(x.shape)
    weights, biases = checked_layers(layers)

    def check() -> None:
        check_layers(x, x.shape[1], layers)

    return run("global_pool_mlp", reference.global_pool_mlp, check, x, weights, biases)


def _block_by_block(x: Tensor, *args: Any) -> Tensor:
    """The stack where no kernel has it as one pass; args as in the operator's schema."""
    *columns, scale, shift, stripes, _ = args
    y = reference.load(x, scale, shift, stripes)
    for *weights, dilation, pool in zip(*columns, strict=True):
        y = sep_conv2d_block(y, *weights, dilation=dilation, pool=pool)
    return in_format_of(x, y)


def _run_bn_blocks(
    x: Tensor,
    blocks: Sequence[BatchNormBlockParameters],
    load: tuple[Tensor | None, Tensor | None, Tensor | None],
    where: str,
) -> Tensor:
    check_bn_blocks(x, blocks, where)
    native = x.dtype in (torch.float32, torch.float64) and not autocasts(x.device.type)
    if native and has_kernel("sep_conv2d_bn_stack", x):
        return run_bn_stack(x, blocks, *load)
    y = reference.load(x, *load)
    for block in blocks:
        y = sep_conv2d(y, *block[:3], dilation=block.dilation)
        y = relu_pool(batch_norm(y, block), block.pool)
    return in_format_of(x, y)
