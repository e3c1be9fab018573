"""Batch norm folded away for good."""

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from foreign import EXACT, random, trained
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastsep
from fastsep import SepConv2d, SepConvBlock, SepConvStack, fold_batchnorm, fuse
from fastsep.eager import to_eager


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


def test_a_fused_block_may_be_the_model(backend: str) -> None:
    model = trained(Foreign()).eval()
    fuse(model)
    x = random(1, 3, 11, 13)
    folded = fold_batchnorm(model.block, eps=0.5)
    assert isinstance(folded, SepConvBlock) and folded.bn is None
    model.block.bn.eps = 0.5
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model.block(x), **EXACT)


@pytest.mark.parametrize("fused", [False, True])
def test_synchronised_batch_norms_are_folded(backend: str, fused: bool) -> None:
    model: Any = trained(Foreign() if fused else SepConvStack([SepConvBlock(2, 4)])).eval()
    x = random(1, 2, 11, 13)
    expected = model(x)
    if fused:
        fuse(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in folded.modules())
    torch.testing.assert_close(folded(x), expected, **EXACT)
    torch.testing.assert_close(model(x), expected, **EXACT)


@pytest.mark.parametrize("name", ["pointwise", "time_taps", "freq_taps"])
def test_parametrised_weights_are_folded_as_they_are(backend: str, name: str) -> None:
    stack = trained(three_blocks()).eval()
    parametrizations.weight_norm(stack[1].conv, name)
    x = random(1, 1, 12, 12)
    with torch.no_grad():
        stack[1].conv.parametrizations[name].original0.mul_(2)
    folded = fold_batchnorm(stack)
    torch.testing.assert_close(folded(x), stack(x), **EXACT)
    assert "conv.bias" in "".join(dict(folded.named_parameters()))
    assert not any("parametrizations" in k for k in folded.state_dict())


def test_parametrised_weights_of_a_fused_block(backend: str) -> None:
    model = trained(Foreign()).eval()
    fuse(model)
    for conv in (model.block.cross.mix, model.block.cross.down):
        parametrizations.weight_norm(conv)
    x = random(1, 2, 11, 13)
    folded = fold_batchnorm(model)
    assert isinstance(folded.block, SepConvBlock) and folded.block.bn is None
    torch.testing.assert_close(folded(x), model(x), **EXACT)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("frozen", ["all", "taps", "norm"])
def test_what_was_frozen_stays_frozen(fused: bool, frozen: str) -> None:
    model: Any = trained(Foreign() if fused else SepConvStack([SepConvBlock(2, 4)])).eval()
    fuse(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen == "all" or ("bn" in name) == (frozen == "norm")))
    folded: Any = fold_batchnorm(model)
    conv = (folded.block if fused else folded[0]).conv
    trains = {name: p.requires_grad for name, p in conv.named_parameters()}
    taps, norm = frozen == "norm", frozen == "taps"
    assert trains == {"pointwise": taps, "time_taps": taps, "freq_taps": taps, "bias": norm}


def test_a_convolution_of_two_blocks_is_folded_for_each(backend: str) -> None:
    a, b = SepConvBlock(3, 3, pool=1), SepConvBlock(3, 3, pool=1)
    b.conv = a.conv
    model = trained(nn.Sequential(a, b, a)).eval()
    with torch.no_grad():
        b.bn.weight.mul_(3)  # type: ignore[union-attr]
    x = random(1, 3, 9, 9)
    folded: Any = fold_batchnorm(model)
    torch.testing.assert_close(folded(x), model(x), **EXACT)
    assert folded[0] is folded[2] and folded[0].conv.pointwise is folded[1].conv.pointwise


def test_a_fused_block_in_two_places_stays_one(backend: str) -> None:
    block = Foreign().block
    model = trained(nn.Sequential(block, nn.Conv2d(6, 3, 1), block)).eval()
    fuse(model)
    folded = fold_batchnorm(model)
    assert folded[0] is folded[2] and isinstance(folded[0], SepConvBlock)
    x = random(1, 3, 11, 13)
    torch.testing.assert_close(folded(x), model(x), **EXACT)


def test_a_bias_before_the_batch_norm_is_folded(backend: str) -> None:
    block = SepConvBlock(3, 7)
    block.conv = SepConv2d(3, 7, bias=True)
    trained(block).eval()
    x = random(1, 3, 9, 9)
    torch.testing.assert_close(fold_batchnorm(block)(x), to_eager(block)(x), **EXACT)
    torch.testing.assert_close(block(x), to_eager(block)(x), **EXACT)


@pytest.mark.parametrize("fused", [False, True])
def test_hooks_are_not_folded_away(backend: str, fused: bool) -> None:
    """Nor is another eps forgotten on their account."""
    model: Any = trained(Foreign() if fused else SepConvStack([SepConvBlock(2, 4)])).eval()
    fuse(model)
    conv = model.block.cross.mix if fused else model[0].conv
    prune.l1_unstructured(conv, "weight" if fused else "pointwise", 0.5)
    x = random(1, 2, 11, 13)
    with torch.no_grad():
        model(x)
        torch.testing.assert_close(fold_batchnorm(model)(x), model(x), **EXACT)
    with pytest.raises(ValueError, match=r"eps=0.5 cannot be applied to (block|0).*prune\.remove"):
        fold_batchnorm(model, eps=0.5)
    prune.remove(conv, "weight" if fused else "pointwise")
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x), **EXACT)


@pytest.mark.parametrize("norm", [nn.Identity(), nn.InstanceNorm2d(4), None])
def test_a_block_without_batch_norm_has_nothing_to_fold(backend: str, norm: Any) -> None:
    block = trained(SepConvBlock(2, 4)).eval()
    block.bn = norm
    x = random(1, 2, 9, 9)
    torch.testing.assert_close(fold_batchnorm(block, eps=0.5)(x), block(x), **EXACT)
