from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from asc.compute import Precision, float32_products, pick_device, send
from asc.errors import UserError

FakeGpu = Callable[..., Any]  # the fixture of conftest


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == pick_device("auto", "bf16") == "cpu"
    with pytest.raises(UserError, match="cuda"):
        pick_device("cuda")
    with pytest.raises(UserError, match="tf32"):
        pick_device("auto", "tf32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(name) for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    assert pick_device("auto", "tf32") == "cuda"
    with pytest.raises(UserError, match="tf32"):
        pick_device("cpu", "tf32")


@pytest.mark.parametrize("precision", get_args(Precision))
def test_float32_products_sets_torchs_switch_and_puts_it_back(precision: Precision) -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), float32_products(precision):
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == before == "highest"


def test_send_leaves_the_cpu_alone() -> None:
    x = torch.ones(3)
    assert send(x, "cpu") is x


def test_the_fake_gpu_finds_mistakes(fake_gpu: FakeGpu) -> None:
    with fake_gpu() as gpu:
        with pytest.raises(RuntimeError, match="two different devices"):
            gpu.empty(3) + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            gpu.empty(3).sum().item()
        gpu.empty(3).cpu()
        torch.ones(3).to(gpu.device)
        send(torch.ones(3), gpu.device)
        gpu.empty(3).copy_(torch.ones(3))
    up, down = ("cpu", "cuda"), ("cuda", "cpu")
    assert gpu.seen == [(*down, False), (*up, False), (*up, True), (*up, False)]
