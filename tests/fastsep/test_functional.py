"""Arguments that do not fit are answered by an error that names them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsep
from fastsep import BlockParameters

X = torch.ones(2, 3, 8, 6)
W: dict[str, Any] = {
    "pointwise": torch.ones(4, 3),
    "time_taps": torch.ones(4, 3),
    "freq_taps": torch.ones(4, 3),
    "bias": torch.ones(4),
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


def test_stop_beyond_any_size_reaches_the_end() -> None:
    """Also a stop that int32 does not hold."""
    block = BlockParameters(**W)
    whole = torch.tensor([[[0, 3, 8]]] * 2)
    beyond = torch.tensor([[[0, 3, 2**40]]] * 2)
    expected = fastsep.sep_conv2d_stack(X, [block], stripes=whole)
    assert torch.equal(fastsep.sep_conv2d_stack(X, [block], stripes=beyond), expected)


@pytest.mark.parametrize("dilation", [7, 8, 100, 2**20])
def test_taps_beyond_the_map_read_zero(backend: str, dilation: int) -> None:
    """However far: at no cost in memory either."""
    y = fastsep.sep_conv2d(X, **W, dilation=dilation)
    bias, centre = W["bias"], 2 * X.sum(1, keepdim=True)
    expected = (centre + bias[:, None, None]).expand(2, 4, 8, 6).clone()
    if dilation == 7:
        expected[:, :, :1] += 3
        expected[:, :, 7:] += 3
    assert torch.equal(y, expected)


def test_pool_beyond_the_map_leaves_nothing(backend: str) -> None:
    assert fastsep.sep_conv2d_block(X, **W, pool=7).shape == (2, 4, 1, 0)
    assert fastsep.sep_conv2d_block(X, **W, pool=2**20).shape == (2, 4, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_autocast_does_not_excuse_what_it_does_not_cast(backend: str, dtype: torch.dtype) -> None:
    """float64 and integers stay what they are under autocast, so they must match without it."""
    bad = W["pointwise"].to(dtype)
    with torch.autocast("cpu"), pytest.raises(TypeError, match=f"pointwise is {dtype}"):
        fastsep.sep_conv2d(X, **{**W, "pointwise": bad})


def test_float64_stays_float64_under_autocast(backend: str) -> None:
    double = {name: w.double() for name, w in W.items()}
    with torch.autocast("cpu"):
        assert fastsep.sep_conv2d(X.double(), **double).dtype == torch.float64


def test_meta_tensors_give_shapes() -> None:
    y = fastsep.sep_conv2d_block(X.to("meta"), **{name: w.to("meta") for name, w in W.items()})
    assert y.device.type == "meta"
    assert y.shape == (2, 4, 4, 3)


def test_a_forced_backend_refuses_tensors_of_other_devices(cpu_kernels: None) -> None:
    meta = {name: w.to("meta") for name, w in W.items()}
    with (
        fastsep.use_backend("cpu"),
        pytest.raises(ValueError, match=r"'cpu' is forced but takes cpu tensors, got one on meta"),
    ):
        fastsep.sep_conv2d(X.to("meta"), **meta)


def test_results_need_no_gradient_where_inputs_do_not(backend: str) -> None:
    assert not fastsep.sep_conv2d(X, **W).requires_grad
    with torch.inference_mode():
        assert fastsep.sep_conv2d_block(X, **W).is_inference()
