"""Floating-point operations of the operators, for `torch.utils.flop_counter.FlopCounterMode`.

Counted as PyTorch counts: two for each weight and position, in backward passes also for what is
computed again, none for biases, ReLU, pooling and statistics.
"""

import importlib.util
import math
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import fastsep.ops  # noqa: F401  (registers the operators)
from fastsep.dispatch import operators

Shape = Sequence[int]

_COUNTER = "torch.utils.flop_counter"


def conv_flop(x: Shape, pointwise: Shape, *_: Any, **__: Any) -> int:
    return _product_flop(x, pointwise) + _taps_flop(x, pointwise)


def conv_backward_flop(
    grad: Shape, x: Shape, pointwise: Shape, a: Shape, b: Shape, dilation: int, needs_x: bool,
    **_: Any,
) -> int:  # fmt: skip
    """The product again, then the gradients of the taps, what goes into them, weights and x."""
    products = 3 if needs_x else 2
    return products * _product_flop(x, pointwise) + 2 * _taps_flop(x, pointwise)


def block_backward_flop(
    grad: Shape, x: Shape, pointwise: Shape, a: Shape, b: Shape, bias: Shape, dilation: int,
    pool: int, needs_x: bool, **_: Any,
) -> int:  # fmt: skip
    """As for the operator; the taps again as well, for ReLU."""
    whole = conv_backward_flop(grad, x, pointwise, a, b, dilation, needs_x)
    return whole + _taps_flop(x, pointwise)


def stack_flop(
    x: Shape, pointwise: list[Shape], a: Any, b: Any, bias: Any, dilation: Any, pool: list[int],
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    clips, _channels, frames, bins = x
    total = 0
    for weight, side in zip(pointwise, pool, strict=True):
        total += conv_flop((clips, weight[1], frames, bins), weight)
        frames, bins = frames // side, bins // side
    return total


def masked_stack_flop(
    x: Shape, pointwise: list[Shape], a: Any, b: Any, bias: Any, dilation: Any, pool: list[int],
    scale: Any, shift: Any, stripes: Shape, bf16: Any, head: Any, head_weight: list[Shape],
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Of all copies: how much they share depends on where the stripes are."""
    copies = (x[0] * stripes[1], *x[1:])
    stack = stack_flop(copies, pointwise, a, b, bias, dilation, pool)
    return stack + head_flop(copies, head_weight)


def bn_stack_flop(
    x: Shape, pointwise: list[Shape], a: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any,
    eps: Any, dilation: Any, pool: list[int], *_: Any, **__: Any,
) -> int:  # fmt: skip
    return stack_flop(x, pointwise, a, b, beta, dilation, pool)


def bn_stack_backward_flop(
    grad: Shape, x: Shape, pointwise: list[Shape], a: Any, b: Any, gamma: Any, beta: Any,
    statistics: Any, frozen: Any, eps: Any, dilation: Any, pool: list[int], scale: Any, shift: Any,
    stripes: Any, saved: Any, needs: list[int], needs_x: bool, needs_affine: bool, **_: Any,
) -> int:  # fmt: skip
    """Down to the first block that needs anything; the taps again, for ReLU."""
    clips, _channels, frames, bins = x
    total, goes_on = 0, needs_x or needs_affine
    for weight, side, need in zip(pointwise, pool, needs, strict=True):
        size = (clips, weight[1], frames, bins)
        of_taps, of_pointwise, of_z = need & 2 > 0, need & 1, need & 1 or goes_on
        if need or goes_on:
            total += (of_pointwise + goes_on) * _product_flop(size, weight)
            total += (1 + of_taps + bool(of_z)) * _taps_flop(size, weight)
        goes_on = goes_on or need > 0
        frames, bins = frames // side, bins // side
    return total


def head_flop(x: Shape, weight: list[Shape], *_: Any, **__: Any) -> int:
    return sum(2 * x[0] * math.prod(layer) for layer in weight)


def statistics_flop(*_: Any, **__: Any) -> int:
    return 0


def log_mel_flop(
    waveform: Shape, window: Shape, hop: int, bands: Shape, weights: Shape, *_: Any, **__: Any
) -> int:
    """Of the filters; PyTorch's counter does not count its own FFT either."""
    return 2 * waveform[0] * (1 + waveform[1] // hop) * weights[0]


FORMULAS = {
    operators.sep_conv2d: conv_flop,
    operators.sep_conv2d_backward: conv_backward_flop,
    operators.sep_conv2d_block: conv_flop,
    operators.sep_conv2d_block_backward: block_backward_flop,
    operators.sep_conv2d_stack: stack_flop,
    operators.sep_conv2d_masked_stack: masked_stack_flop,
    operators.sep_conv2d_bn_stack: bn_stack_flop,
    operators.sep_conv2d_bn_stack_backward: bn_stack_backward_flop,
    operators.global_pool_mlp: head_flop,
    operators.bin_statistics: statistics_flop,
    operators.log_mel: log_mel_flop,
}


def _product_flop(x: Shape, pointwise: Shape) -> int:
    return 2 * x[0] * math.prod(x[2:]) * math.prod(pointwise)


def _taps_flop(x: Shape, pointwise: Shape) -> int:
    return 2 * x[0] * math.prod(x[2:]) * pointwise[0] * (3 + 3)


def _register(counter: ModuleType) -> None:
    for operator, formula in FORMULAS.items():
        counter.register_flop_formula(operator)(formula)


class _Registrar(MetaPathFinder):
    """Registers the formulas when somebody imports the counter, which brings Triton: 0.4 s."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _Registrar())
