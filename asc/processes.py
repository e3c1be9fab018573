"""Work that is shared by processes: started here, or by torchrun.

Started here they are new interpreters (`spawn`: threads and GPUs do not survive a fork), they end
with the process that started them, however that ends, and of what fails one sentence is left.
"""

import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from asc.compute import DeviceName
from asc.errors import UserError

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that processes have to end by themselves before they are killed


@dataclass(frozen=True)
class Place:
    """The place of a process among those that do the same work; local: among this machine's."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, prints and shows progress."""
        return self.rank == 0


def torchrun_place() -> Place:
    """The place that torchrun gave this process; alone without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ[name]) for name in names))


def check_devices(devices: int, device: DeviceName) -> None:
    """UserError unless there can be so many processes, each with a GPU of its own on "cuda"."""
    if devices < 1:
        raise UserError(f"devices must be at least 1, got {devices}")
    if device == "cuda" and 1 < devices > (there := torch.cuda.device_count()):
        raise UserError(
            f"{devices} devices were asked for and PyTorch sees {there} GPU{'s' * (there != 1)}: "
            "choose fewer, or --device cpu"
        )


def take_share(place: Place) -> None:
    """Gives PyTorch this process's share of the cores, in a process of torchrun.

    torchrun sets OMP_NUM_THREADS to 1 where it is not set; another number is the user's.
    """
    if place.count > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_count))


def shares(size: int, count: int, unit: int = 1) -> Iterator[range]:
    """Splits range(size) into `count` ranges in order, of whole units but for the very last."""
    units = -(-size // unit)
    for rank in range(count):
        start, stop = (unit * (units * r // count) for r in (rank, rank + 1))
        yield range(min(start, size), min(stop, size))


def run(
    work: Callable[..., T],
    arguments: list[tuple[Any, ...]],
    *,
    advance: Callable[[Any], None] = lambda said: None,
) -> list[T]:
    """Does `work(place, advance, *arguments[rank])` in as many processes as there are arguments.

    Each has its share of the threads that PyTorch has here, and the environment of a process group
    (`torch.distributed`, `env://`). A script that leads here has to keep what it does under
    `if __name__ == "__main__"`, for the processes import it.

    Args:
        work: a function of a module; it, what it is given and returns have to be picklable.
        arguments: for each process.
        advance: called with what the processes call theirs with, as they do: how many are done, or
            what they found.

    Returns:
        What `work` returned, in order.

    Raises:
        UserError: a process was killed, something cannot be pickled, or shared memory is too small.
        KeyboardInterrupt: here or in one of them; all are gone then.
        Exception: what was raised in a process; the likely cause, if several raised.
    """
    context = multiprocessing.get_context("spawn")
    count, threads = len(arguments), max(1, torch.get_num_threads() // len(arguments))
    port = _free_port()
    processes: list[BaseProcess] = []
    receivers: list[connection.Connection] = []
    try:
        for rank, each in enumerate(arguments):
            receiver, sender = context.Pipe(duplex=False)
            place = Place(rank, count, rank, count)
            process: BaseProcess = context.Process(
                target=_enter, args=(place, threads, port, sender, work, each), daemon=False
            )
            _start(process)
            sender.close()  # so that the end of the process is the end of the pipe
            processes.append(process)
            receivers.append(receiver)
        return _listen(processes, receivers, advance)
    except KeyboardInterrupt:
        for process in processes:  # who was not at the terminal where Ctrl-C was pressed
            with suppress(ProcessLookupError):
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, signal.SIGINT)
        _wait(processes)
        raise
    finally:
        for process in processes:
            process.kill()
            process.join()


def _listen(
    processes: list[BaseProcess],
    receivers: list[connection.Connection],
    advance: Callable[[Any], None],
) -> list[Any]:
    """The results, as soon as all are there; raises once one has failed and the others had time."""
    results: dict[int, Any] = {}
    failures: list[BaseException] = []
    deadline: float | None = None
    waiting = {receiver: rank for rank, receiver in enumerate(receivers)}
    while waiting and (deadline is None or time.monotonic() < deadline):
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        for receiver in connection.wait(list(waiting), remaining):
            assert isinstance(receiver, connection.Connection)
            rank = waiting[receiver]
            try:
                kind, value = pickle.loads(receiver.recv_bytes())
            except (EOFError, OSError):  # OSError: killed in the middle of a message
                kind, value = "failed", _killed(processes[rank], rank, len(processes))
            if kind == "advanced":
                advance(value)
                continue
            del waiting[receiver]
            if kind == "done":
                results[rank] = value
            else:  # others that wait for this one fail too, or never end
                failures.append(value)
                deadline = deadline or time.monotonic() + _PATIENCE / 2
    if failures:
        raise min(failures, key=_severity)
    return [results[rank] for rank in range(len(processes))]


def _severity(error: BaseException) -> int:
    """The cause comes before its consequences: peers that find a connection closed."""
    if isinstance(error, KeyboardInterrupt):
        return 0
    if isinstance(error, UserError):
        return 1
    return 2 if isinstance(error, OSError | MemoryError) else 3


def _killed(process: BaseProcess, rank: int, count: int) -> UserError:
    process.join(_PATIENCE)
    code = process.exitcode
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += ", perhaps for lack of memory" * (-code == signal.SIGKILL)
    return UserError(f"process {rank + 1} of {count} {how}; the others were stopped")


def _start(process: BaseProcess) -> None:
    try:
        process.start()
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UserError(f"the data cannot be given to other processes: {error}") from error
    except BrokenPipeError as error:
        raise UserError("a process ended while it was started") from error
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise UserError(
            "the data does not fit into shared memory, where processes are given it; containers "
            "have little (docker run --shm-size gives more), and one device needs none"
        ) from error


def _wait(processes: list[BaseProcess]) -> None:
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _enter(
    place: Place,
    threads: int,
    port: int,
    sender: connection.Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """What a process does; it always says how it ended, unless it is killed."""
    interrupted = False

    def interrupt(*_: object) -> None:  # by the terminal and by the parent: once
        nonlocal interrupted
        first, interrupted = not interrupted, True
        if first:
            raise KeyboardInterrupt

    def say(message: tuple[str, Any]) -> None:
        # Not send(): that leaves tensors in memory of this process, which is about to end.
        sender.send_bytes(pickle.dumps(message))

    signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.count),
        LOCAL_RANK=str(place.local_rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's name may lead anywhere
    message: tuple[str, Any]
    try:
        message = "done", work(place, lambda said: say(("advanced", said)), *arguments)
    except KeyboardInterrupt:
        message = "failed", KeyboardInterrupt()
    except (UserError, OSError, MemoryError) as error:
        message = "failed", error
    except BaseException as error:
        message = "failed", _described(error, place)
    with suppress(BrokenPipeError):
        say(message)


def _described(error: BaseException, place: Place) -> RuntimeError:
    """An error of ours, whose traceback would not survive the way; it may not be picklable."""
    text = "".join(traceback.format_exception(error))
    return RuntimeError(f"{error}\nin process {place.rank + 1} of {place.count}:\n{text}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
