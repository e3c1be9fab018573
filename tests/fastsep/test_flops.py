"""What FlopCounterMode says of the operators."""

import subprocess
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastsep
from fastsep.eager import to_eager
from fastsep.flops import FORMULAS
from fastsep.kernels import KERNELS
from fastsep.modules import GlobalPool


def counted(call: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_every_operator_has_a_formula() -> None:
    assert {packet.__name__ for packet in FORMULAS} == set(KERNELS)


def layers() -> dict[str, nn.Module]:
    stack = [fastsep.SepConvBlock(2, 8), fastsep.SepConvBlock(8, 5, dilation=1, pool=3)]
    return {
        "operator": fastsep.SepConv2d(2, 8, bias=True),
        "block": fastsep.SepConvBlock(2, 8, pool=3),
        "stack": fastsep.SepConvStack([*stack, fastsep.SepConvBlock(5, 4)]),
        "pool": GlobalPool(),
    }


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layer", layers().values(), ids=layers())
def test_a_forward_counts_as_the_same_in_layers_of_pytorch(
    cpu_kernels: None, layer: nn.Module, gradients: bool
) -> None:
    x, eager = torch.ones(3, 2, 17, 15), to_eager(layer)
    for module in (layer, eager):
        module.eval()
    with torch.set_grad_enabled(gradients):
        expected = counted(lambda: eager(x))
        assert counted(lambda: layer(x)) == expected
        assert (expected > 0) == (not isinstance(layer, GlobalPool))


def test_the_head_counts_its_linear_layers(cpu_kernels: None) -> None:
    sizes = [(7, 4), (3, 7)]
    linear = [(torch.ones(out, wide), torch.ones(out)) for out, wide in sizes]
    with torch.no_grad():
        total = counted(lambda: fastsep.global_pool_mlp(torch.ones(5, 4, 6, 6), linear))
    assert total == 2 * 5 * (7 * 4 + 3 * 7)


def test_a_log_mel_counts_its_filters(cpu_kernels: None) -> None:
    x, window, filters = torch.ones(3, 100), torch.ones(32), torch.eye(17)[:, 2:6]
    sparse = fastsep.sparse_filters(filters)
    total = counted(lambda: fastsep.log_mel(x, sparse, window=window, hop_length=16))
    assert total == 2 * 3 * 7 * 4


@pytest.mark.parametrize("needs_x", [True, False])
def test_a_backward_counts_what_it_computes_again(cpu_kernels: None, needs_x: bool) -> None:
    x = torch.ones(3, 2, 17, 15, requires_grad=needs_x)
    product, taps = 2 * x.numel() * 8, 2 * x.numel() // 2 * 8 * 6
    backward = (3 if needs_x else 2) * product + 2 * taps
    shapes = (8, 2), (8, 3), (8, 3), (8,)
    weights = [torch.ones(shape, requires_grad=True) for shape in shapes]

    def of(function: Callable[..., Tensor]) -> int:
        return counted(lambda: function(x, *weights).sum().backward())

    assert of(fastsep.sep_conv2d) == product + taps + backward
    assert of(fastsep.sep_conv2d_block) == product + taps + backward + taps


@pytest.mark.parametrize("frozen", ["nothing", "the first block", "all pointwise", "all but x"])
def test_a_training_step_counts_what_it_computes(cpu_kernels: None, frozen: str) -> None:
    stack = fastsep.SepConvStack([fastsep.SepConvBlock(2, 8), fastsep.SepConvBlock(8, 5)])
    x = torch.ones(3, 2, 16, 12, requires_grad=frozen == "all but x")
    for name, parameter in stack.named_parameters():
        fixed = {"the first block": name.startswith("0."), "all pointwise": "pointwise" in name}
        parameter.requires_grad_(not fixed.get(frozen, frozen == "all but x"))
    positions = 3 * 16 * 12, 3 * 8 * 6
    products = 2 * positions[0] * 2 * 8, 2 * positions[1] * 8 * 5
    taps = 2 * positions[0] * 8 * 6, 2 * positions[1] * 5 * 6
    forward = sum(products) + sum(taps)
    blocks = [block.unfolded() for block in stack]
    assert counted(lambda: fastsep.sep_conv2d_bn_stack(x, blocks)) == forward
    # products: dx and dP; taps: y again, z's gradient and the taps' own
    expected = {
        "nothing": products[0] + 2 * products[1] + 3 * sum(taps),
        "the first block": products[1] + 3 * taps[1],
        "all pointwise": products[1] + 2 * taps[0] + 3 * taps[1],
        "all but x": sum(products) + 2 * sum(taps),
    }
    step = counted(lambda: fastsep.sep_conv2d_bn_stack(x, blocks).sum().backward())
    assert step - forward == expected[frozen]


@pytest.mark.parametrize("first", ["torch.utils.flop_counter", "fastsep"])
def test_whichever_is_imported_first(
    cpu_kernels: None,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    first: str,
) -> None:
    code = f"""
import importlib
importlib.import_module({first!r})
import torch, fastsep
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    fastsep.SepConv2d(2, 8)(torch.ones(1, 2, 3, 4))
print(counter.get_total_flops())
"""
    run = run_python(code)
    assert run.stdout.strip() == str(2 * 12 * (2 * 8 + 6 * 8)), run.stderr
