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
