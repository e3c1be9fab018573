"""Class probabilities of a data set, with or without test-time augmentation (TTA)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from asc.device import Precision, float32_products, send
from asc.errors import UserError
from asc.features import N_MELS
from asc.model import WIDTHS, Cnn6Sep, SpecAugment
from asc.progress import tracked

MAX_BATCH_BYTES = 2**30
# Maps of block 1's size that the slowest way to compute it (fastsep's plain-PyTorch reference)
# holds at once; the fused kernels need far less.
_MAPS_ALIVE = 6


class LogMels(Protocol):
    """Items (logmel (1, T, 256) float32, label), all of one T, as of `asc.data.LogMels`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@torch.inference_mode()
def evaluate(
    model: Cnn6Sep,
    dataset: LogMels,
    *,
    tta: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> Tensor:
    """Class probabilities of every item of a data set.

    With tta = K > 0 a clip's probabilities are the mean of the softmax outputs under K masks drawn
    from `model.specaugment` (DCASE 2021 Task 1A report, section 3); its unmasked self is not among
    them. The masks of a clip depend on seed and the clip's index, and on nothing else.

    Args:
        model: in eval mode, best folded; moved to `device` and set to `precision`.
        dataset: the clips; labels are not looked at.
        tta: masks per clip; 0 for one unmasked pass.
        seed: of the masks, not negative.
        device: where to compute.
        precision: of the network, see `asc.device`.
        max_batch_bytes: bound on the memory a batch takes: so many clips, or masks of a clip, go
            through the network at once as need six feature maps of block 1 (28 MB each in 10 s).

    Returns:
        (N, classes) float64 on the CPU.

    Raises:
        ValueError: a model in train mode, arguments out of range.
        UserError: a clip whose outputs are not finite.
    """
    if tta < 0 or seed < 0:
        raise ValueError(f"tta and seed must not be negative, got {tta} and {seed}")
    if tta == 0:
        logits = clip_logits(
            model, dataset, device=device, precision=precision, max_batch_bytes=max_batch_bytes
        )
        return logits.softmax(dim=1)
    probabilities = _results(model, dataset, device)
    with _computing(model, device, precision):
        for index in tracked(range(len(dataset)), f"evaluation, {tta} masks a clip"):
            logmel = send(dataset[index][0][None], device)
            frames, bins = logmel.shape[2:]
            stripes = draw_masks(model.specaugment, tta, frames, bins, seed, index)
            logits = masked_logits(model, logmel, stripes, max_batch_bytes=max_batch_bytes)
            mean = logits.softmax(dim=1).mean(dim=0)
            probabilities[index] = mean.where(logits.isfinite().all(), torch.nan)
    return _checked(probabilities)


@torch.inference_mode()
def clip_logits(
    model: Cnn6Sep,
    dataset: LogMels,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> Tensor:
    """Logits (N, classes) of every item, unmasked, float64 on the CPU; arguments as `evaluate`."""
    logits = _results(model, dataset, device)
    size = batch_size(dataset[0][0].shape[1], max_batch_bytes) if len(dataset) else 1
    with _computing(model, device, precision):
        for start in tracked(range(0, len(dataset), size), "evaluation"):
            stop = min(start + size, len(dataset))
            batch = torch.stack([dataset[index][0] for index in range(start, stop)])
            logits[start:stop] = model(send(batch, device))
    return _checked(logits)


@torch.inference_mode()
def masked_logits(
    model: Cnn6Sep, logmel: Tensor, stripes: Tensor, *, max_batch_bytes: int = MAX_BATCH_BYTES
) -> Tensor:
    """Logits of one clip under each of K masks.

    The K copies are one tensor with stride 0; the mask is applied as the first block loads it.

    Args:
        model: in eval mode. logmel: (1, 1, T, 256). stripes: (K, S, 3).

    Returns:
        (K, classes) float64, on the log-mel's device.
    """
    chunks = send(stripes, logmel.device).split(batch_size(logmel.shape[2], max_batch_bytes))
    logits = [model(logmel.expand(len(chunk), -1, -1, -1), chunk) for chunk in chunks]
    return torch.cat(logits).double()


def draw_masks(
    specaugment: SpecAugment, tta: int, num_frames: int, num_bins: int, seed: int, index: int
) -> Tensor:
    """The TTA masks (tta, S, 3) of clip number `index`, reproducible in (seed, index)."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    return specaugment.draw(tta, num_frames, num_bins, generator)


def batch_size(num_frames: int, max_batch_bytes: int) -> int:
    """How many inputs of so many frames fit a batch, at least 1."""
    largest_map = 4 * WIDTHS[0] * num_frames * N_MELS  # bytes of block 1 before pooling
    return max(1, max_batch_bytes // (_MAPS_ALIVE * largest_map))


@contextmanager
def _computing(model: Cnn6Sep, device: torch.device | str, precision: Precision) -> Iterator[None]:
    if model.training:
        raise ValueError("the model is in train mode: call model.eval(), or model.folded()")
    model.to(device)
    model.blocks.compute = "bf16" if precision == "bf16" else None
    with float32_products(precision):
        yield


def _results(model: Cnn6Sep, dataset: LogMels, device: torch.device | str) -> Tensor:
    """Room for a row a clip: on the device, so that nothing waits for it before the end."""
    return torch.empty(len(dataset), len(model.classes), dtype=torch.float64, device=device)


def _checked(results: Tensor) -> Tensor:
    """The results on the CPU; UserError if a row is not finite."""
    results = results.cpu()
    bad = (~results.isfinite().all(dim=1)).nonzero()
    if len(bad):
        number = int(bad[0])
        raise UserError(f"clip {number}, counted from 0: the network's outputs are not finite")
    return results
