"""How the processes of a run share it: places in a group, parts of batches, batch statistics."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import Sampler

from asc.compute import DeviceName
from asc.errors import UserError
from asc.processes import Place, check_devices, take_share, torchrun_place
from asc.seeds import mixed_seed
from asc.training.settings import Settings
from fastsep.syncnorm import SyncBatchNorm2d

_PATIENCE = timedelta(hours=2)  # of torchrun's processes, while the first computes log-mels


class EpochShuffle(Sampler[int]):
    """A permutation that follows from the seed and the epoch's number; Lightning sets the epoch.

    Cut into whole batches, of each of which a process gets its share, in order.
    """

    def __init__(
        self, size: int, batch: int, seed: int, epoch: int, place: Place | None = None
    ) -> None:
        self.size, self.batch, self.seed, self.epoch = size, batch, seed, epoch
        self.place = place or Place()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        batches = order[: self.size // self.batch * self.batch].view(-1, self.batch)
        yield from batches.chunk(self.place.count, 1)[self.place.rank].flatten().tolist()

    def __len__(self) -> int:
        return self.size // self.batch * self.batch // self.place.count


def check_shares(devices: int, settings: Settings) -> None:
    """UserError unless so many processes can share a batch equally."""
    batch = settings.preset.batch_size
    if devices > batch or batch % devices:
        near = max(devices, batch // devices * devices)
        raise UserError(
            f"a batch of {batch} clips cannot be shared equally by {devices} devices: choose a "
            f"--batch-size, which counts the clips of all of them, that {devices} divides ({near})"
        )


def join(devices: int, device: DeviceName, settings: Settings) -> Place:
    """The place among torchrun's processes, which then are a process group; alone without them.

    Raises:
        UserError: these devices cannot train together.
    """
    place = torchrun_place()
    if place.count > 1 and devices not in (1, place.count):
        raise UserError(f"torchrun has started {place.count} processes: leave out --devices")
    check_devices(devices if place.count == 1 else place.local_count, device)
    check_shares(max(devices, place.count), settings)
    if place.count > 1 and not dist.is_initialized():
        take_share(place)
        if not place.is_first:
            logging.getLogger("asc").setLevel(logging.ERROR)  # the first one says it
        if device == "cuda":
            torch.cuda.set_device(place.local_rank)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    return place


def meet(place: Place) -> None:
    """Waits for torchrun's other processes."""
    if place.count > 1:
        dist.barrier()


@contextmanager
def first_before_others(place: Place) -> Iterator[None]:
    """Inside, the first of torchrun's processes is done before the others begin."""
    if not place.is_first:
        meet(place)
    yield
    if place.is_first:
        meet(place)


def synchronise(model: nn.Module, device: DeviceName) -> None:
    """Makes batch norms those of the whole batch; PyTorch's own are for GPUs only."""
    if device == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        SyncBatchNorm2d.convert(model)
