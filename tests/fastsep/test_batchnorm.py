"""Batch norm folded on the fly: whatever changes the weights, the next call sees it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastsep import SepConvBlock
from fastsep.batchnorm import FoldCache, batch_norm_affine, fold
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


def batch_norm(**options: Any) -> nn.BatchNorm2d:
    return trained(nn.BatchNorm2d(5, **options)).eval()


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.3}], ids=str)
def test_the_affine_is_the_batch_norm(options: dict[str, Any]) -> None:
    bn, x = batch_norm(**options), random(2, 5, 4, 3)
    scale, shift = batch_norm_affine(bn)
    torch.testing.assert_close(scale[:, None, None] * x + shift[:, None, None], bn(x), **EXACT)
    wider, _ = batch_norm_affine(bn, eps=0.5)
    bn.eps = 0.5
    torch.testing.assert_close(wider, batch_norm_affine(bn)[0], rtol=0, atol=0)


def test_the_affine_is_computed_in_float64() -> None:
    bn = batch_norm()
    exact, rounded = batch_norm_affine(bn), batch_norm_affine(bn.float())
    assert all(t.dtype == torch.float64 for t in rounded)
    torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=1e-6)


def test_folded_taps_are_the_taps_and_the_batch_norm() -> None:
    bn, time, freq = batch_norm(), random(5, 3), random(5, 3, seed=1)
    a, b, bias = fold(bn, time, freq)
    scale, shift = batch_norm_affine(bn)
    torch.testing.assert_close((a / time, b / freq), 2 * (scale[:, None].expand(5, 3),), **EXACT)
    assert torch.equal(bias, shift)
    assert all(t.dtype == torch.float32 for t in fold(bn, time.float(), freq.float()))


def test_a_batch_norm_without_statistics_has_no_affine() -> None:
    with pytest.raises(ValueError, match="no running statistics"):
        batch_norm_affine(nn.BatchNorm2d(5, track_running_stats=False))


def test_statistics_of_the_batch_are_not_folded() -> None:
    taps, cache = (random(5, 3), random(5, 3)), FoldCache()
    assert cache(nn.BatchNorm2d(5, track_running_stats=False).eval(), *taps) is None
    bn = batch_norm()
    assert cache(bn, *taps) is not None
    assert cache(bn.train(), *taps) is None


# The cache.


def in_place(block: Any) -> None:
    with torch.no_grad():
        block.conv.time_taps.mul_(2)


def through_data(block: Any) -> None:
    block.conv.time_taps.data.mul_(2)  # does not count as a change to autograd's version counter


def through_detach(block: Any) -> None:
    block.bn.weight.detach().mul_(2)


def through_numpy(block: Any) -> None:
    block.conv.freq_taps.detach().numpy()[...] *= 2


def optimizer_step(block: Any) -> None:
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    with torch.enable_grad():
        block(random(1, 3, 9, 8)).sum().backward()
    optimizer.step()


def another_parameter(block: Any) -> None:
    block.conv.freq_taps = nn.Parameter(2 * block.conv.freq_taps.detach())


def another_tensor_as_data(block: Any) -> None:
    block.conv.freq_taps.data = 2 * block.conv.freq_taps.data


def load_state_dict(block: Any) -> None:
    block.load_state_dict({k: 2 * v for k, v in block.state_dict().items()})


def load_state_dict_assign(block: Any) -> None:
    block.load_state_dict({k: 2 * v for k, v in block.state_dict().items()}, assign=True)


def running_variance(block: Any) -> None:
    block.bn.running_var.fill_(3)


def training_step_of_batch_norm(block: Any) -> None:
    block.train()(random(2, 3, 9, 8))
    block.eval()


def eps(block: Any) -> None:
    block.bn.eps = 0.5


def another_batch_norm(block: Any) -> None:
    block.bn = nn.BatchNorm2d(7, affine=False).double().eval()


def dtype_there_and_back(block: Any) -> None:
    block.half()
    block.double()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change",
    [
        in_place,
        through_data,
        through_detach,
        through_numpy,
        optimizer_step,
        another_parameter,
        another_tensor_as_data,
        load_state_dict,
        load_state_dict_assign,
        running_variance,
        training_step_of_batch_norm,
        eps,
        another_batch_norm,
        dtype_there_and_back,
    ],
)
def test_folding_follows_the_weights(
    backend: str, change: Callable[[Any], None], context: Callable[[], Any]
) -> None:
    block = trained(SepConvBlock(3, 7)).eval()
    x = random(1, 3, 9, 8)
    with context():
        before = block(x)
        assert torch.equal(block(x), before)
    change(block)
    with context():
        after = block(x)
    with torch.no_grad():
        torch.testing.assert_close(after, to_eager(block)(x), **EXACT)
    assert not torch.equal(after, before)


def test_folding_follows_weights_that_reuse_memory(backend: str) -> None:
    """New tensors where freed ones were: same address, same version, other values."""
    block = trained(SepConvBlock(3, 7)).eval()
    x = random(1, 3, 9, 8)
    with torch.no_grad():
        for i in range(20):
            del block.conv.time_taps
            block.conv.time_taps = nn.Parameter(random(7, 3, seed=i))
            torch.testing.assert_close(block(x), to_eager(block)(x), **EXACT)


def test_eval_in_inference_mode_then_training(backend: str) -> None:
    """What inference mode cached does not haunt autograd."""
    block = trained(SepConvBlock(3, 7)).eval()
    x = random(2, 3, 9, 8)
    with torch.inference_mode():
        expected = block(x)
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    y = block(x)
    torch.testing.assert_close(y, expected.clone(), **EXACT)
    y.sum().backward()
    assert x.grad is not None
