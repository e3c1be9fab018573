"""What several tests need: a model as people write it without fastsep; to compare and to watch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # float64: a few thousand eps


class SepConv(nn.Module):
    """A separable block as people write it."""

    def __init__(self, cin: int = 3, cout: int = 6, dilation: int = 2, pool: int = 2) -> None:
        super().__init__()
        self.ch_conv1 = nn.Conv2d(cin, cout, 1, bias=False)
        self.sp_conv1 = nn.Conv2d(
            cout, cout, (3, 1), dilation=dilation, padding=(dilation, 0), groups=cout, bias=False
        )
        self.sp_conv2 = nn.Conv2d(
            cout, cout, (1, 3), dilation=dilation, padding=(0, dilation), groups=cout, bias=False
        )
        self.bn = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(pool)

    def cross(self, x: Tensor) -> Tensor:
        z = self.ch_conv1(x)
        return self.sp_conv1(z) + self.sp_conv2(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn(self.cross(x))))


class Model(nn.Module):
    """A block with something around it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.before = nn.Conv2d(2, 3, 1)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.block(self.before(x)))


class Calls(TorchDispatchMode):
    """Notes the operators that run, and what the last backward was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.needs: tuple[list[int], bool, bool] | None = None
        self.saves: bool | None = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace == "fastsep":
            self.names.append(name)
            if name == "sep_conv2d_bn_stack":
                self.saves = args[-1]
            elif name == "sep_conv2d_bn_stack_backward":
                self.needs = args[-3:]
        return function(*args, **(kwargs or {}))


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trained(module: nn.Module) -> Any:
    """In float64, with the batch norms of a network that has seen data."""
    rng = torch.Generator().manual_seed(1)
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
                if tensor is not None:
                    with torch.no_grad():
                        tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.2)
    return module.double()


def eval_and_train(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, gradients and buffers of a pass in eval mode and one in training."""
    results = []
    for mode in (False, True):
        model.train(mode)
        y = model(x)
        parameters = [p for p in model.parameters() if p.requires_grad]
        results += [y, *torch.autograd.grad(y.square().sum(), parameters)]
    model.eval()
    with torch.no_grad():
        results.append(model(x))  # after training moved the statistics
    return [*results, *model.buffers()]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    for got, wanted in zip(a, b, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)
