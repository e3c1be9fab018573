"""Layers in training and in eval mode; the choice of backend; what importing costs."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import EXACT, Calls, random, trained
from torch import nn

import fastsep
from fastsep import SepConv2d, SepConvBlock, SepConvStack, fold_batchnorm, reference
from fastsep.eager import to_eager
from fastsep.modules import GlobalPool


def assert_same_gradients(layer: nn.Module, twin: nn.Module) -> None:
    for got, wanted in zip(layer.parameters(), twin.parameters(), strict=True):
        assert got.grad is not None and wanted.grad is not None
        torch.testing.assert_close(got.grad, wanted.grad.view_as(got.grad), rtol=1e-10, atol=1e-10)


def three_blocks() -> SepConvStack:
    torch.manual_seed(0)
    return SepConvStack(
        [SepConvBlock(1, 8), SepConvBlock(8, 6, dilation=1, pool=1), SepConvBlock(6, 20, pool=3)]
    )


@pytest.mark.parametrize("bias", [True, False])
def test_sep_conv2d_module(backend: str, bias: bool) -> None:
    layer = SepConv2d(3, 5, dilation=3, bias=bias).double()
    x = random(2, 3, 9, 8)
    weights = (layer.pointwise, layer.time_taps, layer.freq_taps, layer.bias)
    torch.testing.assert_close(layer(x), reference.sep_conv2d(x, *weights, 3), **EXACT)
    names = {"pointwise", "time_taps", "freq_taps"} | ({"bias"} if bias else set())
    assert set(layer.state_dict()) == names


def test_initial_weights_are_in_the_range_of_conv2d() -> None:
    layer = SepConv2d(16, 500, bias=True)
    for weight, fan_in in ((layer.pointwise, 16), (layer.time_taps, 3), (layer.freq_taps, 3)):
        assert 0.95 * fan_in**-0.5 < weight.abs().max() <= fan_in**-0.5
    assert layer.bias is not None
    assert layer.bias.abs().max() <= 1


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_training_is_that_of_the_eager_layers(backend: str, pool: int) -> None:
    block = trained(SepConvBlock(3, 7, pool=pool))
    twin = to_eager(block)
    x = random(4, 3, 9, 8)
    for _ in range(2):
        y, expected = block(x), twin(x)
        torch.testing.assert_close(y, expected, **EXACT)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(block, twin)
    torch.testing.assert_close(list(block.buffers()), list(twin.buffers()), **EXACT)
    assert block.bn.num_batches_tracked == 2


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_eval_mode_is_that_of_the_eager_layers(backend: str, affine: bool, grad_mode: bool) -> None:
    block = SepConvBlock(3, 7)
    block.bn = nn.BatchNorm2d(7, affine=affine)
    trained(block).eval()
    x = random(2, 3, 9, 8)
    before = copy.deepcopy(block.state_dict())
    with torch.set_grad_enabled(grad_mode):
        torch.testing.assert_close(block(x), to_eager(block)(x), **EXACT)
        folded = fold_batchnorm(block)
        torch.testing.assert_close(folded(x), to_eager(block)(x), **EXACT)
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)


def test_eval_mode_without_running_statistics_uses_the_batch(backend: str) -> None:
    block = SepConvBlock(3, 7)
    block.bn = nn.BatchNorm2d(7, track_running_stats=False)
    trained(block).eval()
    x = random(4, 3, 9, 8)
    torch.testing.assert_close(block(x), to_eager(block)(x), **EXACT)
    with pytest.raises(ValueError, match="no running statistics"):
        fold_batchnorm(block)


def test_gradients_through_the_folded_eval_mode(backend: str) -> None:
    """Fine-tuning with frozen statistics: every parameter gets the eager layers' gradient."""
    block = trained(SepConvBlock(3, 7)).eval()
    twin = to_eager(block)
    x, x_twin = random(2, 3, 9, 8).requires_grad_(), random(2, 3, 9, 8).requires_grad_()
    block(x).square().sum().backward()
    twin(x_twin).square().sum().backward()
    torch.testing.assert_close(x.grad, x_twin.grad, rtol=1e-10, atol=1e-10)
    assert_same_gradients(block, twin)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_stack_is_its_blocks_in_sequence(backend: str, training: bool) -> None:
    stack = trained(three_blocks()).train(training)
    twin = to_eager(stack)
    x = random(3, 1, 20, 18)
    scale, shift = random(18, seed=1), random(18, seed=2)
    stripes = torch.tensor([[[0, 2, 9], [1, 0, 4]]] * 3)
    y = stack(x, affine=(scale, shift), stripes=stripes)
    loaded = reference.load(x, scale, shift, stripes)
    expected = twin[2](twin[1](twin[0](loaded)))
    torch.testing.assert_close(y, expected, **EXACT)
    torch.testing.assert_close(list(stack.buffers()), list(twin.buffers()), **EXACT)
    torch.testing.assert_close(stack(x), nn.Sequential(*stack)(x), **EXACT)


def test_stack_with_some_batch_norms_frozen(backend: str) -> None:
    stack = trained(three_blocks())
    stack[0].bn.eval()
    twin = to_eager(stack)
    x = random(3, 1, 20, 18)
    torch.testing.assert_close(stack(x), twin(x), **EXACT)
    torch.testing.assert_close(list(stack.buffers()), list(twin.buffers()), **EXACT)


@pytest.mark.parametrize("gradients", [True, False])
def test_which_operator_a_layer_runs(cpu_kernels: None, gradients: bool) -> None:
    """One for the whole stack, whatever is frozen; folded where nobody learns."""
    stack, x = trained(three_blocks()), random(2, 1, 20, 18)
    frozen = copy.deepcopy(stack)
    for block in frozen:
        block.bn.eval()
    mixed = copy.deepcopy(stack)
    mixed[1].bn.eval()
    without = copy.deepcopy(stack)
    without[2].conv.register_forward_hook(lambda *_: None)
    learning = ["sep_conv2d_bn_stack"]
    folded = ["sep_conv2d_block"] * 3 if gradients else ["sep_conv2d_stack"]
    cases = [
        (stack, learning),
        (mixed, learning),
        (frozen, learning if gradients else folded),
        (copy.deepcopy(stack).eval(), folded),
        (copy.deepcopy(stack).eval()[0], ["sep_conv2d_block"]),
        (stack[0], learning),
        (without, [*learning * 2, "sep_conv2d"]),
    ]
    for module, expected in cases:
        with torch.set_grad_enabled(gradients), Calls() as calls:
            module(x)
        assert calls.names == expected


def test_stack_takes_blocks_only() -> None:
    """Anything else would be skipped in eval mode."""
    with pytest.raises(TypeError, match="SepConvBlock"):
        SepConvStack([SepConvBlock(1, 4), nn.Dropout(0.1)])  # type: ignore[list-item]


@pytest.mark.parametrize("gradients", [True, False])
def test_other_layers_put_into_a_stack_are_called(backend: str, gradients: bool) -> None:
    stack, x = three_blocks().double(), random(2, 1, 16, 12)
    affine = random(12, seed=1), random(12, seed=2)
    stack.append(nn.Dropout())
    stack[1] = nn.Sequential(stack[1], nn.Tanh())
    stack.eval()
    with torch.set_grad_enabled(gradients):
        y = reference.load(x, *affine, None)
        for layer in stack:
            y = layer(y)
        torch.testing.assert_close(stack(x, affine=affine), y)
        stack.train()
        assert (stack(x) == 0).float().mean() > 0.3


def test_a_slice_of_a_stack_is_a_stack(backend: str) -> None:
    stack = trained(three_blocks()).eval()
    head, x = stack[:2], random(1, 1, 12, 12)
    assert isinstance(head, SepConvStack)
    torch.testing.assert_close(head(x), stack[1](stack[0](x)), **EXACT)


def test_compute_of_a_stack(cpu_kernels: None) -> None:
    """In eval mode it is that of the function; training, copies and slices keep it for later."""
    torch.manual_seed(0)
    stack = SepConvStack([SepConvBlock(3, 8), SepConvBlock(8, 4)], compute="bf16").eval()
    x = random(2, 3, 16, 16).float()
    with fastsep.use_backend("cpu"), torch.no_grad():
        blocks = [block.inference_parameters() for block in stack]
        expected = fastsep.sep_conv2d_stack(x, blocks, compute="bf16")
        assert torch.equal(stack(x), expected)
        for twin in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack)), stack[:2]):
            assert torch.equal(twin(x), expected)
        assert torch.equal(fold_batchnorm(stack)(x), expected)
        stack.compute = None
        exact = stack(x)
        stack.compute = "bf16"
        assert torch.equal(stack.train()(x), SepConvStack(stack).train()(x))
    assert (expected - exact).abs().max() < 0.05


def test_global_pool(backend: str) -> None:
    x = random(2, 3, 7, 5)
    layer = GlobalPool()
    torch.testing.assert_close(layer(x), x.mean(3).amax(2) + x.mean((2, 3)), **EXACT)
    assert not layer.state_dict()


# State.


def test_state_dict_of_a_stack() -> None:
    names = {"conv.pointwise", "conv.time_taps", "conv.freq_taps", "bn.weight", "bn.bias"}
    names |= {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    assert set(three_blocks().state_dict()) == {f"{i}.{name}" for i in range(3) for name in names}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_independent(
    backend: str, duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    stack = trained(three_blocks()).eval()
    x = random(2, 1, 20, 18)
    with torch.no_grad():
        before = stack(x)  # fills the caches that the copy must not share
        twin = duplicate(stack)
        assert torch.equal(twin(x), before)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(twin(x), before)
        assert torch.equal(stack(x), before)


def test_state_dict_round_trip_through_a_file(tmp_path: Any) -> None:
    stack, twin = trained(three_blocks()).eval(), three_blocks().double().eval()
    torch.save(stack.state_dict(), tmp_path / "weights.pt")
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = random(1, 1, 20, 18)
    assert torch.equal(twin(x), stack(x))


def test_modules_are_made_on_the_device_and_dtype_in_force() -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in SepConvBlock(3, 4).parameters())
    assert SepConvBlock(3, 4).to(torch.float64)(random(1, 3, 4, 4)).dtype == torch.float64


def test_repr_says_what_it_is() -> None:
    text = repr(SepConvBlock(3, 4, dilation=5, pool=7))
    assert all(part in text for part in ("3, 4", "dilation=5", "pool=7", "BatchNorm2d"))
