"""Blocks in training: the operator and what batch norm remembers, or PyTorch's layer by layer.

The operator mutates nothing: running statistics are moved after it, from what it used.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastsep.checks import BatchNormBlockParameters
from fastsep.dispatch import needs_gradients, operators


def run_bn_stack(
    x: Tensor,
    blocks: Sequence[BatchNormBlockParameters],
    scale: Tensor | None,
    shift: Tensor | None,
    stripes: Tensor | None,
) -> Tensor:
    """The operator on arguments that were checked; running statistics follow."""
    weights = [list(column) for column in zip(*[block[:3] for block in blocks], strict=True)]
    channels = [len(pointwise) for pointwise in weights[0]]
    gamma = [x.new_ones(c) if b.gamma is None else b.gamma
             for b, c in zip(blocks, channels, strict=True)]  # fmt: skip
    beta = [x.new_zeros(c) if b.beta is None else b.beta
            for b, c in zip(blocks, channels, strict=True)]  # fmt: skip
    none = x.new_empty(0)
    frozen = [(b.running_mean, b.running_var) if b.is_frozen else (none, none) for b in blocks]
    mean, var = [m for m, _ in frozen], [v for _, v in frozen]
    save = torch.is_grad_enabled() and needs_gradients((x, *weights, gamma, beta, scale, shift))
    y, statistics, _ = operators.sep_conv2d_bn_stack(
        x, *weights, gamma, beta, mean, var, [b.eps for b in blocks], [b.dilation for b in blocks],
        [b.pool for b in blocks], scale, shift, stripes, save,
    )  # fmt: skip
    clips, _, frames, bins = x.shape
    for block, used in zip(blocks, statistics, strict=True):
        if block.training:
            mean_and_var = block.running_mean, block.running_var
            count = clips * frames * bins
            track(*mean_and_var, block.num_batches_tracked, block.momentum, used, count)
        frames, bins = frames // block.pool, bins // block.pool
    return y


def track(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    statistics: Tensor | Sequence[Tensor],
    count: int,
) -> None:
    """Moves a batch norm's running statistics, in place, as `nn.BatchNorm2d` does.

    Args:
        statistics: mean and biased variance of the batch, (C,) float64.
        count: how many values each was taken from; nothing is learnt from none.
    """
    with torch.no_grad():
        if num_batches_tracked is not None:
            num_batches_tracked.add_(1)
        if running_mean is None or running_var is None or count == 0:
            return
        mean, var = statistics
        var = var * (count / (count - 1))
        share: float | Tensor
        if momentum is None:
            assert num_batches_tracked is not None
            share = 1 / num_batches_tracked.double()
        else:
            share = momentum
        for running, new in ((running_mean, mean), (running_var, var)):
            running.copy_(running.double() * (1 - share) + new * share)


def batch_norm(y: Tensor, block: BatchNormBlockParameters) -> Tensor:
    """The block's batch norm as `nn.BatchNorm2d` calls it."""
    share = block.momentum
    if block.training and (count := block.num_batches_tracked) is not None:
        count.add_(1)
        if share is None and block.running_mean is not None:
            share = 1 / float(count)
    return F.batch_norm(
        y,
        block.running_mean,
        block.running_var,
        block.gamma,
        block.beta,
        not block.is_frozen,
        0.0 if share is None else share,
        block.eps,
    )


def norm_relu_pool(bn: nn.Module | None, y: Tensor, pool: int) -> Tensor:
    """What follows the convolution in a block whose layers are called one by one."""
    return relu_pool(y if bn is None else bn(y), pool)


@fx.wrap  # as its callers here see it
def relu_pool(y: Tensor, pool: int) -> Tensor:
    y = torch.relu(y)
    if pool == 1:
        return y
    if min(y.shape[2:]) < pool:  # no window fits, which avg_pool2d calls an error
        return y[:, :, : y.shape[2] // pool, : y.shape[3] // pool]
    return F.avg_pool2d(y, pool)
