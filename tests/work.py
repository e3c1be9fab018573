"""What tests have several processes do: these import it by name, as they cannot import a test."""

import copy
import os
import signal
import time
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch import distributed as dist

from asc.errors import UserError
from asc.processes import Place
from asc.progress import Advance
from fastsep.syncnorm import SyncBatchNorm2d

Parts: TypeAlias = list[tuple[Tensor, Tensor]]


def report(place: Place, advance: Advance, number: int) -> tuple[Place, int, int]:
    advance(number)
    return place, number, torch.get_num_threads()


def end(place: Place, advance: Advance, folder: Path, how: str) -> None:
    """Ends in a way, or ("wait") stays until it is stopped; leaves a file named as its pid."""
    (folder / str(os.getpid())).touch()
    if how == "wait":
        time.sleep(600)
    elif how == "user":
        raise UserError("the clips are gone")
    elif how == "ours":
        raise ZeroDivisionError("a mistake")
    elif how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def normalise(
    place: Place, advance: Advance, cases: list[tuple[nn.BatchNorm2d, Parts]]
) -> list[dict[str, Tensor]]:
    """`steps` of each batch norm, synchronised, in a group if this is one of several processes."""
    if place.count > 1:
        dist.init_process_group("gloo")
    # Copied, for the processes are given the same memory.
    return [steps(SyncBatchNorm2d.convert(copy.deepcopy(bn)), parts) for bn, parts in cases]


def in_a_group_of_one(
    place: Place, advance: Advance, cases: list[tuple[nn.BatchNorm2d, Parts]]
) -> list[dict[str, Tensor]]:
    dist.init_process_group("gloo")
    return normalise(place, advance, cases)


def steps(bn: nn.Module, parts: Parts) -> dict[str, Tensor]:
    """Steps on (x, gradient of the output), and then one in eval mode."""
    found = {}
    for i, (x, gradient) in enumerate(parts):
        x = x.detach().requires_grad_()
        y = bn(x)
        y.backward(gradient)
        assert x.grad is not None
        found |= {f"y{i}": y.detach(), f"dx{i}": x.grad}
    found |= {f"d{name}": p.grad for name, p in bn.named_parameters() if p.grad is not None}
    found |= {name: buffer.clone() for name, buffer in bn.named_buffers()}
    return found | {"eval": bn.eval()(parts[0][0]).detach()}


def train_in_float64(place: Place, advance: Advance, *arguments: Any) -> None:
    """A process's part of `asc.training.run.fit`, so exact that rounding hardly shows."""
    from asc.training.run import _train  # Lightning, which takes seconds

    torch.set_default_dtype(torch.float64)
    _train(place, advance, *arguments)
