"""Logits and probabilities of clips, with or without test-time augmentation (TTA)."""

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from asc.augment import SpecAugment
from asc.compute import MAX_MASKS, Engine, Precision, float32_products, send
from asc.errors import UserError
from asc.model import WIDTHS, Cnn6, Cnn6Sep
from asc.progress import counted
from asc.seeds import mixed_seed
from asc.task import N_MELS
from fastsep import SepConvStack

Network: TypeAlias = Cnn6Sep | Cnn6

MAX_BATCH_BYTES = 2**30
# Maps of block 1's size that the slowest way to compute it (fastsep's plain-PyTorch reference)
# holds at once; the fused kernels need far less.
_MAPS_ALIVE = 6
_DRAWN = 256  # masks drawn at once; another number draws other masks
_STEP = 20  # masks between two looks at the standard error
_SHARED_BYTES = 40 * 2**20  # of the maps that one call of the shared engine returns


class LogMelItems(Protocol):
    """Items (logmel (1, T, 256) float32, label), all of one T, as of `asc.data.LogMelDataset`.

    An attribute `names`, a name for every item, is used where there is one.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class Until:
    """As many masks a clip as its probabilities need, in steps of 20.

    tolerance: enough are those whose mean has a standard error of at most this, in every class.
    most: masks after which there are no more, whatever the error.
    """

    tolerance: float = 0.01
    most: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, got {self.tolerance}")
        if not 0 < self.most <= MAX_MASKS:
            raise ValueError(f"most must be from 1 to {MAX_MASKS}, got {self.most}")


@torch.inference_mode()
def probabilities(
    model: Network,
    items: LogMelItems,
    *,
    tta: int | Until = 0,
    seed: int = 0,
    engine: Engine = "shared",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> Tensor:
    """Class probabilities of every item.

    With tta = K > 0 a clip's probabilities are the mean of the softmax outputs under K masks drawn
    from `model.specaugment`; its unmasked self is not among them. The masks of a clip depend on
    seed, K and the name of its file without folders, and on nothing else; on its index where the
    items have no names.

    Args:
        model: in eval mode, best folded; left as it is.
        items: the clips' log-mels; labels are not looked at.
        tta: masks per clip, 0 for one unmasked pass; or when there are enough of them.
        seed: of the masks, not negative.
        engine: how masked copies are computed; "shared" is fast and "batched" there to compare.
        device: where to compute; None: where the model is.
        precision: of the network, see `asc.compute`.
        max_batch_bytes: bound on the memory a batch takes: so many clips, or masks of a clip where
            they are not shared, go through the network at once as need six feature maps of block 1
            (28 MB each in 10 s).

    Returns:
        (N, classes) float64 on the CPU.

    Raises:
        ValueError: a model in train mode, arguments out of range.
        UserError: a clip whose outputs are not finite.

    Source: DCASE 2021 Task 1A report of Puy, Jain and Bursuc, section 3.
    """
    check(model, tta, seed)
    if tta == 0:
        logits = clip_logits(
            model, items, device=device, precision=precision, max_batch_bytes=max_batch_bytes
        )
        return logits.softmax(dim=1)
    with (
        computing(model, device, precision) as (network, where),
        counted(f"evaluation, {tta_name(tta)}", len(items)) as advance,
    ):
        results, names = rows(network, len(items), where), item_names(items) or range(len(items))
        for batch in batches(network, items, max_batch_bytes=max_batch_bytes, engine=engine):
            logmels = stacked(items, batch, where)
            of_batch = [names[index] for index in batch]
            results[batch.start : batch.stop], _ = masked(
                network, logmels, of_batch, tta, seed, engine, max_batch_bytes
            )
            advance(len(batch))
    return checked(results, items)


@torch.inference_mode()
def clip_logits(
    model: Network,
    items: LogMelItems,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> Tensor:
    """Logits of every item, unmasked.

    Args, Raises: as `probabilities`.

    Returns:
        (N, classes) float64 on the CPU.
    """
    check(model)
    with (
        computing(model, device, precision) as (network, where),
        counted("evaluation", len(items)) as advance,
    ):
        logits = rows(network, len(items), where)
        for batch in batches(network, items, max_batch_bytes=max_batch_bytes):
            logits[batch.start : batch.stop] = network(stacked(items, batch, where))
            advance(len(batch))
    return checked(logits, items)


@torch.inference_mode()
def masked_logits(
    model: Network,
    logmel: Tensor,
    stripes: Tensor,
    *,
    engine: Engine = "shared",
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> Tensor:
    """Logits of each clip under each of its K masks.

    Args:
        model: in eval mode, on the log-mels' device.
        logmel: (N, 1, T, 256).
        stripes: integers (N, K, S, 3), or (K, S, 3) for a single clip; see
            `asc.augment.draw_stripes`.
        engine, max_batch_bytes: as of `probabilities`.

    Returns:
        (N, K, classes) float64, or (K, classes); on the log-mels' device.
    """
    if stripes.ndim == 3:
        options: dict[str, Any] = {"engine": engine, "max_batch_bytes": max_batch_bytes}
        return masked_logits(model, logmel, stripes[None], **options)[0]
    stripes = send(stripes, logmel.device)
    clips, _, frames, _ = logmel.shape
    if _shares(model, engine):
        of_a_copy = 4 * WIDTHS[-1] * frames * N_MELS // 4 ** len(WIDTHS)
        size = max(32, _SHARED_BYTES // (max(clips, 1) * of_a_copy))
        parts = [model.masked(logmel, part) for part in stripes.split(size, dim=1)]
        return torch.cat(parts, dim=1).double()
    size, logits = batch_size(frames, max_batch_bytes), []
    for clip, masks in zip(logmel, stripes, strict=True):  # the copies are one of stride 0
        parts = [model(clip.expand(len(part), -1, -1, -1), part) for part in masks.split(size)]
        logits.append(torch.cat(parts))
    return torch.stack(logits).double()


def batches(
    network: Network,
    items: LogMelItems,
    *,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    engine: Engine = "batched",
) -> Iterator[range]:
    """Indices of items that go through the network together: all items, in order."""
    if len(items):
        size = batch_size(items[0][0].shape[1], max_batch_bytes)
        if _shares(network, engine):
            size += -size % torch.get_num_threads()  # masked copies: a clip a thread
        for start in range(0, len(items), size):
            yield range(start, min(start + size, len(items)))


def stacked(items: LogMelItems, indices: range, device: torch.device) -> Tensor:
    """The log-mels of some items, (n, 1, T, 256)."""
    return send(torch.stack([items[index][0] for index in indices]), device)


def masked(
    network: Network,
    logmels: Tensor,
    names: Sequence[str | int],
    tta: int | Until,
    seed: int,
    engine: Engine = "shared",
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> tuple[Tensor, Tensor]:
    """Probabilities of clips under masks, not looked at.

    Args:
        network: of `computing`.
        logmels: (n, 1, T, 256), where the network is.
        names: of the clips, or their numbers, from which their masks follow.
        tta, seed, engine, max_batch_bytes: as of `probabilities`.

    Returns:
        (n, classes) float64 where the network is, and how many masks each is the mean of, (n,)
        int64 on the CPU.
    """
    results = rows(network, len(names), logmels.device)
    used = torch.zeros(len(names), dtype=torch.int64)
    frames, bins = logmels.shape[2:]
    most = tta.most if isinstance(tta, Until) else tta
    size = torch.get_num_threads() if _shares(network, engine) else 1  # a clip a thread
    for start in range(0, len(names), size):
        chosen = logmels[start : start + size]
        drawn = [
            draw_masks(network.specaugment, most, frames, bins, seed, name)
            for name in names[start : start + size]
        ]
        means = [_Mean(row) for row in results[start : start + size].zero_()]
        for stripes in _in_steps(drawn, tta):
            left = [i for i, mean in enumerate(means) if not mean.is_enough(tta)]
            if not left:
                break
            if len(left) < len(chosen):
                some, stripes = chosen[left], stripes[left]
            else:
                some = chosen
            logits = masked_logits(
                network, some, stripes, engine=engine, max_batch_bytes=max_batch_bytes
            )
            for i, of_clip in zip(left, logits, strict=True):
                means[i].add(of_clip)
        for row, mean in enumerate(means, start):
            mean.finish()
            used[row] = mean.count
    return results, used


def tta_name(tta: int | Until) -> str:
    """For people."""
    return "enough masks a clip" if isinstance(tta, Until) else f"{tta} masks a clip"


def _in_steps(drawn: list[Iterator[Tensor]], tta: int | Until) -> Iterator[Tensor]:
    """The next masks of all clips, (N, n, S, 3)."""
    for stripes in zip(*drawn, strict=True):
        size = _STEP if isinstance(tta, Until) else len(stripes[0])
        yield from torch.stack(stripes).split(size, dim=1)


class _Mean:
    """Of the softmax outputs of a clip's copies; total: the row that it is to be in."""

    def __init__(self, total: Tensor) -> None:
        self.total, self.squares, self.count = total, torch.zeros_like(total), 0

    def add(self, logits: Tensor) -> None:
        """(n, classes). NaN where one is not finite."""
        outputs = logits.softmax(dim=1).where(logits.isfinite().all(), torch.nan)
        self.total += outputs.sum(dim=0)
        self.squares += outputs.square().sum(dim=0)
        self.count += len(logits)

    def is_enough(self, tta: int | Until) -> bool:
        """Whether the mean's standard error is small; also where it is not a number."""
        if not isinstance(tta, Until) or self.count < 2:
            return False
        spread = self.squares - self.total.square() / self.count
        error = (spread.clamp(min=0) / (self.count - 1) / self.count).sqrt()
        return not bool((error > tta.tolerance).any())

    def finish(self) -> None:
        self.total /= self.count


def draw_masks(
    specaugment: SpecAugment, tta: int, num_frames: int, num_bins: int, seed: int, clip: str | int
) -> Iterator[Tensor]:
    """The TTA masks of a clip, reproducible in seed, tta and the clip's name or number.

    Yields:
        (n, S, 3), n at most 256; together there are tta of them.
    """
    if isinstance(clip, str):
        clip = int.from_bytes(hashlib.sha256(os.fsencode(clip)).digest())
    generator = torch.Generator().manual_seed(mixed_seed(seed, clip))
    for start in range(0, tta, _DRAWN):
        yield specaugment.draw(min(_DRAWN, tta - start), num_frames, num_bins, generator)


def item_names(items: object) -> Sequence[str] | None:
    """The items' own names, through PyTorch's ways to take parts and to join; None without."""
    if hasattr(items, "names"):
        return items.names
    if isinstance(items, Subset):
        names = item_names(items.dataset)
        return names and [names[index] for index in items.indices]
    if isinstance(items, ConcatDataset):
        parts = [item_names(part) for part in items.datasets]
        return None if None in parts else [name for part in parts for name in part or ()]
    return None


def batch_size(num_frames: int, max_batch_bytes: int) -> int:
    """How many inputs of so many frames fit a batch, at least 1."""
    largest_map = 4 * WIDTHS[0] * num_frames * N_MELS  # bytes of block 1 before pooling
    return max(1, max_batch_bytes // (_MAPS_ALIVE * largest_map))


def check(model: Network, tta: int | Until = 0, seed: int = 0) -> None:
    """ValueError for a model in train mode and for arguments out of range."""
    if (isinstance(tta, int) and tta < 0) or seed < 0:
        raise ValueError(f"tta and seed must not be negative, got {tta} and {seed}")
    if model.training:
        raise ValueError("the model is in train mode: call model.eval(), or model.folded()")


def _shares(model: Network, engine: Engine) -> TypeGuard[Cnn6Sep]:
    return engine == "shared" and isinstance(model, Cnn6Sep) and model.shares()


@contextmanager
def computing(
    model: Network, device: torch.device | str | None, precision: Precision
) -> Iterator[tuple[Network, torch.device]]:
    """The model as it is to compute, and where; PyTorch's switch is set meanwhile."""
    own = next(model.parameters()).device
    where = own if device is None else torch.empty(0, device=device).device  # "cuda" has no number
    with float32_products(precision):
        yield _adapted(model, where, precision), where


def _adapted(model: Network, device: torch.device, precision: Precision) -> Network:
    """The model on a device and of a precision; itself if it is so already, else a copy.

    The copy has its own parameters only if they had to move: the caller, or another thread that
    computes with the model, sees nothing of either.
    """
    if any(t.device != device for t in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).to(device)
    blocks, compute = model.blocks, "bf16" if precision == "bf16" else None
    if isinstance(blocks, SepConvStack) and blocks.compute != compute:
        model, blocks = copy.copy(model), copy.copy(blocks)
        model._modules = model._modules | {"blocks": blocks}
        blocks.compute = compute
    return model


def rows(network: Network, clips: int, device: torch.device) -> Tensor:
    """Room for a row a clip: on the device, so that nothing waits for it before the end."""
    return torch.empty(clips, len(network.classes), dtype=torch.float64, device=device)


def checked(results: Tensor, items: LogMelItems) -> Tensor:
    """The results on the CPU; UserError if a row is not finite."""
    results = results.cpu()
    bad = (~results.isfinite().all(dim=1)).nonzero()
    if len(bad):
        number, names = int(bad[0]), item_names(items)
        clip = f"'{names[number]}'" if names else f"clip {number}, counted from 0"
        raise UserError(f"{clip}: the network's outputs are not finite")
    return results
