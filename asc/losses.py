"""Losses on soft targets."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[0] == 0:
        raise ValueError(f"logits must be (N, K) with N > 0, got {tuple(logits.shape)}")
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must be soft labels of shape {tuple(logits.shape)} like the logits, got "
            f"{tuple(targets.shape)} (one-hot encode class indices)"
        )
    if not logits.is_floating_point() or not targets.is_floating_point():
        raise TypeError(
            f"logits and targets must be floating, got {logits.dtype} and {targets.dtype}"
        )


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy `-sum_k t_k log p_k`, mean over the batch.

    Args:
        logits: (N, K).
        targets: (N, K) class probabilities.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit.
    """
    _check(logits, targets)
    return -(targets * log_softmax(logits, dim=1)).sum(1).mean()


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 1.0) -> Tensor:
    """Focal loss `-sum_k t_k (1 - p_k)^gamma log p_k`, mean over the batch.

    With soft targets; the DCASE 2021 Task 1A report uses gamma = 1. gamma = 0 is cross entropy.

    Args:
        logits: (N, K).
        targets: (N, K) class probabilities.
        gamma: focusing exponent, >= 0.

    Raises:
        ValueError, TypeError: shapes, dtypes or a gamma that do not fit.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, eq. 4.
    """
    _check(logits, targets)
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    log_p = log_softmax(logits, dim=1)
    # -expm1 keeps the digits of 1 - p; the clamp keeps gradients finite at p = 1 for gamma < 1.
    one_minus_p = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -(targets * one_minus_p.pow(gamma) * log_p).sum(1).mean()
