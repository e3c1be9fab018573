"""Fixtures of all tests of asc."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastsep
from asc.errors import UserError

aten = torch.ops.aten


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept of our own accord, here and by the processes that tests start, is the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def refused() -> Callable[..., AbstractContextManager[None]]:
    """refused(parts...): inside, a UserError is raised, in one line in which the parts occur."""

    @contextmanager
    def refused(*parts: object) -> Iterator[None]:
        with pytest.raises(UserError) as error:
            yield
        message = str(error.value)
        assert "\n" not in message
        for part in parts:
            assert str(part) in message

    return refused


@pytest.fixture(scope="session")
def wav() -> Callable[..., Path]:
    """wav(path, hertz, seconds): an audio file with a tone, and the folders above it."""

    def write(path: Path, hertz: float = 440.0, seconds: float = 0.2) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(round(seconds * 44_100)) / 44_100
        noise = np.random.default_rng(int(hertz)).normal(0, 0.01, len(t))
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * t) + noise, 44_100, "PCM_24")
        return path

    return write


# What a GPU would be given is checked without one: fake tensors know shape, dtype and device but
# hold no numbers, so computing with some on "cuda" and some on "cpu" raises, and so does asking for
# a number, for which a real GPU would have to be waited for.


class FakeGpu(TorchDispatchMode):
    """Sees copies between devices: (from, to, whether the host goes on without waiting)."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (aten.to, aten._to_copy, aten.copy_):
            names = (argument.name for argument in func._schema.arguments)
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            source = args[1 if func.overloadpacket is aten.copy_ else 0]
            ends = source.device.type, result.device.type
            if ends[0] != ends[1]:
                self.seen.append((*ends, given.get("non_blocking", False)))
        return result

    def waits(self) -> list[tuple[str, str, bool]]:
        return [transfer for transfer in self.seen if not transfer[2]]

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.device)


@pytest.fixture
def fake_gpu() -> Callable[..., AbstractContextManager[FakeGpu]]:
    """fake_gpu(backend): inside, all new tensors are fake; modules are made before, moved inside.

    backend: what fastsep takes for CUDA tensors, "reference" or, where it is installed, "triton",
    of whose operators the fake kernels run.
    """

    @contextmanager
    def fake_gpu(backend: str = "reference") -> Iterator[FakeGpu]:
        with (
            pytest.MonkeyPatch.context() as patch,
            fastsep.use_backend(None if backend == "triton" else backend),  # by the device
            FakeTensorMode(allow_non_fake_inputs=True),
            FakeGpu() as gpu,
        ):
            patch.setattr(Tensor, "pin_memory", lambda self: self)  # fake tensors have none
            patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
            patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # both for autocast
            yield gpu

    return fake_gpu
