"""Arguments that do not fit are answered by an error that names them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastsep
from fastsep import BatchNormBlockParameters, BlockParameters, global_pool_mlp

X = torch.ones(2, 3, 8, 6)
W: dict[str, Any] = {
    "pointwise": torch.ones(4, 3),
    "time_taps": torch.ones(4, 3),
    "freq_taps": torch.ones(4, 3),
    "bias": torch.ones(4),
}
NORMED: dict[str, Any] = {
    **{name: W[name] for name in ("pointwise", "time_taps", "freq_taps")},
    **{name: torch.ones(4) for name in ("gamma", "beta", "running_mean", "running_var")},
}
STRIPES = torch.zeros(2, 1, 3, dtype=torch.int32)

# What each function is called with instead, the error's type, and what its message says.
ANY_FUNCTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [[1.0]]}, TypeError, r"x must be a tensor, got list"),
    ({"x": torch.ones(3, 8, 6)}, ValueError, r"x must have 4 dimensions .*\(3, 8, 6\)"),
    ({"x": torch.ones(1, 2, 3, 8, 6)}, ValueError, r"x must have 4 dimensions"),
    ({"x": X.long()}, TypeError, r"x must be float32, .*int64"),
    ({"x": X.to(torch.complex64)}, TypeError, r"x must be float32, .*complex64"),
    ({"x": X.double()}, TypeError, r"pointwise is torch.float32 but x is torch.float64"),
    ({"pointwise": torch.ones(4, 3, 1, 1)}, ValueError, r"pointwise .*\(4, 3, 1, 1\)"),
    ({"pointwise": torch.ones(4, 5)}, ValueError, r"pointwise must be .*\(4, 3\).*\(4, 5\)"),
    ({"pointwise": None}, (TypeError, ValueError), r"pointwise .*NoneType"),  # type: ignore[list-item]
    ({"pointwise": W["pointwise"].double()}, TypeError, r"pointwise is torch.float64 but x is"),
    ({"pointwise": W["pointwise"].int()}, TypeError, r"pointwise is torch.int32 but x is"),
    ({"time_taps": torch.ones(4, 5)}, ValueError, r"time_taps must be .*\(4, 3\).*\(4, 5\)"),
    ({"time_taps": torch.ones(5, 3)}, ValueError, r"time_taps must be .*\(4, 3\).*\(5, 3\)"),
    ({"time_taps": torch.ones(4, 1, 3, 1)}, ValueError, r"time_taps must be .*\(4, 1, 3, 1\)"),
    ({"time_taps": [1.0, 2.0, 3.0]}, TypeError, r"time_taps must be a tensor, got list"),
    ({"freq_taps": torch.ones(3)}, ValueError, r"freq_taps must be .*\(4, 3\).*\(3,\)"),
    ({"freq_taps": W["freq_taps"].half()}, TypeError, r"freq_taps is torch.float16 but x is"),
    ({"freq_taps": W["freq_taps"].to("meta")}, ValueError, r"freq_taps is on meta but x is on cpu"),
    ({"bias": torch.ones(3)}, ValueError, r"bias must be .*\(4,\).*\(3,\)"),
    ({"bias": torch.ones(4, 1)}, ValueError, r"bias must be .*\(4,\).*\(4, 1\)"),
    ({"bias": 1.0}, TypeError, r"bias must be a tensor, got float"),
    ({"dilation": 0}, ValueError, r"dilation must be at least 1, got 0"),
    ({"dilation": -2}, ValueError, r"dilation must be at least 1, got -2"),
    ({"dilation": True}, TypeError, r"dilation must be an int, got bool"),
    ({"dilation": 2.0}, TypeError, r"dilation must be an int, got float"),
    ({"dilation": (2, 2)}, TypeError, r"dilation must be an int, got tuple"),
]
WITH_POOL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"pool": 0}, ValueError, r"pool must be at least 1, got 0"),
    ({"pool": True}, TypeError, r"pool must be an int, got bool"),
    ({"pool": (2, 2)}, TypeError, r"pool must be an int, got tuple"),
    ({"bias": None}, TypeError, r"bias must be a tensor, got NoneType"),
]


def named(case: Any) -> str:
    """A test id for the arguments; nothing for the error and its message."""
    if not isinstance(case, dict):
        return ""
    ((name, value),) = case.items()
    if isinstance(value, Tensor):
        value = f"{value.dtype}{list(value.shape)}{value.device}".removeprefix("torch.")
    return f"{name}={value if isinstance(value, str | int | float) else type(value).__name__}"


def call_conv(arguments: dict[str, Any]) -> Tensor:
    return fastsep.sep_conv2d(**{"x": X, **W, **arguments})


def call_block(arguments: dict[str, Any]) -> Tensor:
    return fastsep.sep_conv2d_block(**{"x": X, **W, **arguments})


def call_stack(arguments: dict[str, Any]) -> Tensor:
    """The arguments go to a block, behind one that is good."""
    good = BlockParameters(torch.eye(3), torch.ones(3, 3), torch.ones(3, 3), torch.ones(3), 1, 1)
    x = arguments.get("x", X)
    weights = {k: v for k, v in arguments.items() if k != "x"}
    return fastsep.sep_conv2d_stack(x, [good, BlockParameters(**{**W, **weights})])


def call_bn_block(arguments: dict[str, Any]) -> Tensor:
    return fastsep.sep_conv2d_bn_block(**{"x": X, **NORMED, **_normed(arguments)})


def call_bn_stack(arguments: dict[str, Any]) -> Tensor:
    """The arguments go to a block, behind one that is good."""
    good = BatchNormBlockParameters(torch.eye(3), torch.ones(3, 3), torch.ones(3, 3), pool=1)
    arguments = _normed(arguments)
    x = arguments.pop("x", X)
    block = BatchNormBlockParameters(**{**NORMED, **arguments})
    return fastsep.sep_conv2d_bn_stack(x, [good, block])


def _normed(arguments: dict[str, Any]) -> dict[str, Any]:
    """What is asked of a bias is asked of beta."""
    return {name: v for name, v in arguments.items() if name != "bias"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"), [c for c in ANY_FUNCTION if "bias" not in c[0]], ids=named
)
@pytest.mark.parametrize("call", [call_bn_block, call_bn_stack])
def test_bad_arguments_in_training(
    backend: str,
    call: Callable[[dict[str, Any]], Tensor],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        call(arguments)


BAD_NORM: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"pool": 0}, ValueError, r"pool must be at least 1, got 0"),
    ({"gamma": torch.ones(3)}, ValueError, r"gamma must be .*\(4,\).*\(3,\)"),
    ({"beta": 1.0}, TypeError, r"beta must be a tensor, got float"),
    ({"beta": torch.ones(4).double()}, TypeError, r"beta is torch.float64 but x is"),
    ({"running_mean": torch.ones(5)}, ValueError, r"running_mean must be .*\(4,\).*\(5,\)"),
    ({"running_var": torch.ones(4).to("meta")}, ValueError, r"running_var is on meta"),
    ({"running_mean": None}, ValueError, r"running_mean and .*running_var go together"),
    ({"running_var": None}, ValueError, r"running_mean and .*running_var go together"),
    ({"momentum": None}, ValueError, r"momentum is None, which needs num_batches_tracked"),
    ({"momentum": "0.1"}, TypeError, r"momentum must be a number or None, got str"),
    ({"eps": 0.0}, ValueError, r"eps must be a positive number, got 0.0"),
    ({"eps": None}, ValueError, r"eps must be a positive number, got None"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_NORM, ids=named)
@pytest.mark.parametrize("call", [call_bn_block, call_bn_stack])
def test_bad_batch_norms(
    backend: str,
    call: Callable[[dict[str, Any]], Tensor],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    where = r"^blocks\[1\]\." if call is call_bn_stack else "^"
    with pytest.raises(error, match=where + message):
        call(arguments)
    assert torch.equal(NORMED["running_var"], torch.ones(4))


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "blocks is empty"),
        ([tuple(W.values())], TypeError, r"blocks\[0\] must be BatchNorm.*, got tuple"),
        (
            [BatchNormBlockParameters(**NORMED), BlockParameters(**W)],
            TypeError,
            r"blocks\[1\] must be BatchNormBlockParameters, got BlockParameters",
        ),
    ],
)
def test_bad_blocks_in_training(blocks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastsep.sep_conv2d_bn_stack(X, blocks)


@pytest.mark.parametrize(("arguments", "error", "message"), ANY_FUNCTION, ids=named)
@pytest.mark.parametrize("call", [call_conv, call_block, call_stack])
def test_bad_arguments(
    backend: str,
    call: Callable[[dict[str, Any]], Tensor],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        call(arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), WITH_POOL, ids=named)
@pytest.mark.parametrize("call", [call_block, call_stack])
def test_bad_arguments_of_blocks(
    backend: str,
    call: Callable[[dict[str, Any]], Tensor],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        call(arguments)


def test_a_stack_says_which_block_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"blocks\[1\]\.pointwise must be .*\(4, 3\).*\(4, 5\)"):
        call_stack({"pointwise": torch.ones(4, 5)})


BAD_STACK: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"blocks": []}, ValueError, r"blocks is empty"),
    ({"compute": "int8"}, ValueError, r"compute must be .*bf16.*int8"),
    ({"blocks": tuple(W.values())}, TypeError, r"blocks\[0\]"),
    ({"blocks": [tuple(W.values())[:3]]}, TypeError, r"blocks\[0\]"),
    ({"affine": torch.ones(6)}, (TypeError, ValueError), r"affine"),  # type: ignore[list-item]
    ({"affine": (torch.ones(6),)}, (TypeError, ValueError), r"affine"),  # type: ignore[list-item]
    ({"affine": (torch.ones(8), torch.ones(6))}, ValueError, r"affine scale must be .*\(6,\)"),
    ({"affine": (torch.ones(6), torch.ones(1))}, ValueError, r"affine shift must be .*\(6,\)"),
    ({"affine": (torch.ones(6), None)}, TypeError, r"affine shift must be a tensor, got NoneType"),
    (
        {"affine": (torch.ones(6).double(), torch.ones(6))},
        TypeError,
        r"affine scale is torch.float64 but x is",
    ),
    ({"stripes": [[[0, 1, 2]]] * 2}, TypeError, r"stripes must be a tensor, got list"),
    ({"stripes": STRIPES[0]}, ValueError, r"stripes must be \(N, S, 3\).*\(1, 3\)"),
    ({"stripes": STRIPES[:1]}, ValueError, r"stripes must be .*\(2, S, 3\).*\(1, 1, 3\)"),
    ({"stripes": STRIPES[..., :2]}, ValueError, r"stripes must be .*\(2, 1, 2\)"),
    ({"stripes": STRIPES.float()}, TypeError, r"stripes must hold integers, got torch.float32"),
    ({"stripes": STRIPES.bool()}, TypeError, r"stripes must hold integers, got torch.bool"),
    ({"stripes": STRIPES.to("meta")}, ValueError, r"stripes is on meta but x is on cpu"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_STACK, ids=named)
def test_bad_arguments_of_a_stack(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    good = {"x": X, "blocks": [BlockParameters(**W)]}
    with pytest.raises(error, match=message):
        fastsep.sep_conv2d_stack(**{**good, **arguments})


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_STACK[4:], ids=named)
def test_bad_arguments_of_a_stack_module(
    arguments: dict[str, Any], error: type[Exception], message: str, training: bool
) -> None:
    """In training, where the affine and the stripes are applied by PyTorch, no worse answered."""
    module = fastsep.SepConvStack([fastsep.SepConvBlock(3, 4)]).train(training)
    with pytest.raises(error, match=message):
        module(X, **arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_autocast_does_not_excuse_what_it_does_not_cast(backend: str, dtype: torch.dtype) -> None:
    """float64 and integers stay what they are under autocast, so they must match without it."""
    bad = W["pointwise"].to(dtype)
    with torch.autocast("cpu"), pytest.raises(TypeError, match=f"pointwise is {dtype}"):
        fastsep.sep_conv2d(X, **{**W, "pointwise": bad})


# The head.


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (2, 3, 5, 0)])
def test_nothing_to_pool_is_an_error(backend: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one frame and one bin"):
        global_pool_mlp(torch.empty(shape))


BAD_LAYERS = {
    "no pair": ([torch.ones(4, 3)], TypeError, r"layers\[0\] must be a pair"),
    "no tensor": ([(None, torch.ones(4))], TypeError, r"layers\[0\] weight must be a tensor"),
    "vector": ([(torch.ones(3), torch.ones(3))], ValueError, r"layers\[0\] weight must be"),
    "inputs": ([(torch.ones(4, 2), torch.ones(4))], ValueError, r"\(out, in\) = \(4, 3\)"),
    "second": (
        [(torch.ones(4, 3), torch.ones(4)), (torch.ones(2, 3), torch.ones(2))],
        ValueError,
        r"layers\[1\] weight must be \(out, in\) = \(2, 4\)",
    ),
    "bias": ([(torch.ones(4, 3), torch.ones(3))], ValueError, r"layers\[0\] bias must be"),
    "no bias": ([(torch.ones(4, 3), None)], TypeError, r"layers\[0\] bias must be a tensor"),
    "meta": ([(torch.ones(4, 3, device="meta"), torch.ones(4))], ValueError, "is on meta"),
    "dtype": ([(torch.ones(4, 3).double(), torch.ones(4))], TypeError, "convert one"),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("layers", "error", "message"), BAD_LAYERS.values(), ids=BAD_LAYERS)
def test_layers_that_do_not_fit_are_an_error(
    backend: str,
    layers: list[tuple[Tensor, Tensor]],
    error: type[Exception],
    message: str,
    requires_grad: bool,
) -> None:
    with pytest.raises(error, match=message):
        global_pool_mlp(torch.ones(2, 3, 4, 5, requires_grad=requires_grad), layers)


def test_fake_tensors_are_checked(weights: Callable[..., tuple[Any, Any, Any, Any]]) -> None:
    with FakeTensorMode():
        x, (_, a, b, c) = torch.empty(2, 4, 6, 5), weights(4, 6, torch.float32)
        for bad, error in (
            (torch.empty(6, 5), ValueError),
            (torch.empty(6, 4).double(), TypeError),
        ):
            with pytest.raises(error, match="pointwise"):
                fastsep.sep_conv2d_stack(x, [fastsep.BlockParameters(bad, a, b, c)])
