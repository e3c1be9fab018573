"""Batch norm folded away for good."""

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsep
from fastsep import SepConvBlock, SepConvStack, fold_batchnorm
from fastsep.eager import to_eager

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # float64: a few thousand eps


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


def three_blocks() -> SepConvStack:
    torch.manual_seed(0)
    return SepConvStack(
        [SepConvBlock(1, 8), SepConvBlock(8, 6, dilation=1, pool=1), SepConvBlock(6, 20, pool=3)]
    )


def test_fold_batchnorm_leaves_the_original_alone() -> None:
    stack = trained(three_blocks()).train()
    before = copy.deepcopy(stack.state_dict())
    folded = fold_batchnorm(stack)
    assert stack.training and not folded.training
    assert all(block.bn is None for block in folded)
    torch.testing.assert_close(stack.state_dict(), before, rtol=0, atol=0)
    assert not {t.data_ptr() for t in folded.parameters()} & {
        t.data_ptr() for t in stack.parameters()
    }
    names = {"pointwise", "time_taps", "freq_taps", "bias"}
    assert set(folded.state_dict()) == {f"{i}.conv.{name}" for i in range(3) for name in names}


@pytest.mark.parametrize("eps", [None, 0.0, 0.3])
def test_fold_batchnorm_with_another_eps(backend: str, eps: float | None) -> None:
    stack = trained(three_blocks()).eval()
    x = random(2, 1, 20, 18)
    folded, default = fold_batchnorm(stack, eps=eps)(x), stack(x)
    for block in stack:
        if eps is not None:  # as PyTorch takes no eps of 0: var + eps = (var + eps - 1e-5) + 1e-5
            block.bn.running_var += eps - block.bn.eps
    torch.testing.assert_close(folded, to_eager(stack)(x), **EXACT)
    assert eps is None or (folded - default).abs().max() > 1e-7


def test_folding_an_almost_constant_channel_is_done_in_float64() -> None:
    """float32: 1 / sqrt(var + eps) of var = 9.3e-11, as in a released checkpoint, loses nothing."""
    block: Any = SepConvBlock(1, 4)
    block.bn.running_var.fill_(9.3e-11)
    block.bn.running_mean.fill_(0.4)
    exact = fold_batchnorm(copy.deepcopy(block).double(), eps=0)
    folded = fold_batchnorm(block, eps=0)
    for got, wanted in zip(folded.parameters(), exact.parameters(), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted.float(), rtol=1e-6, atol=0)


def test_folding_twice_is_folding_once(backend: str) -> None:
    folded = fold_batchnorm(trained(three_blocks()))
    again = fold_batchnorm(folded)
    x = random(1, 1, 12, 12)
    assert torch.equal(again(x), folded(x))
    assert torch.equal(folded.train()(x), folded.eval()(x))


def test_folded_weights_round_trip_and_train(backend: str) -> None:
    folded = fold_batchnorm(trained(three_blocks()))
    twin = fold_batchnorm(three_blocks().double())
    twin.load_state_dict(folded.state_dict())
    x = random(2, 1, 12, 12)
    assert torch.equal(twin(x), folded(x))
    folded(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


def test_folding_a_constant_channel_without_eps_is_refused() -> None:
    block = trained(SepConvBlock(3, 7))
    assert block.bn is not None and block.bn.running_var is not None
    block.bn.running_var[2] = 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        fold_batchnorm(block, eps=0)
    fold_batchnorm(block)


class Foreign(nn.Module):
    """A block as people write it, and something before it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(2, 3, 1)
        self.block = nn.Sequential(OrderedDict(cross=Cross(3, 6), bn=nn.BatchNorm2d(6),
                                               relu=nn.ReLU(), pool=nn.AvgPool2d(2)))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.block(self.before(x)))


class Cross(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(cin, cout, 1, bias=False)
        self.down = nn.Conv2d(cout, cout, (3, 1), padding=(1, 0), groups=cout, bias=False)
        self.across = nn.Conv2d(cout, cout, (1, 3), padding=(0, 1), groups=cout, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.mix(x)
        return self.down(z) + self.across(z)


def test_fold_batchnorm_of_a_fused_model_folds_it(backend: str) -> None:
    """With another eps, too: the way to reproduce software that leaves it out."""
    model = trained(Foreign()).eval()
    assert fastsep.fuse(model).replaced
    x = random(1, 2, 11, 13)
    folded = fastsep.fold_batchnorm(model, eps=0.5)
    model.block.bn.eps = 0.5
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), **EXACT)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
