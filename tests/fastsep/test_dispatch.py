"""Whether a call goes to an operator or to the reference, and under whose eyes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsep
from fastsep import SepConv2d, reference
from fastsep.dispatch import operators
from fastsep.eager import to_eager
from fastsep.kernels import KERNELS

Draw = Callable[..., tuple[Any, Any, Any, Any]]  # the fixture `weights`

X = torch.ones(2, 3, 8, 6)
W: dict[str, Any] = {
    "pointwise": torch.ones(4, 3),
    "time_taps": torch.ones(4, 3),
    "freq_taps": torch.ones(4, 3),
    "bias": torch.ones(4),
}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_use_backend_changes_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def spy(*args: Any) -> Tensor:
        calls.append("reference")
        return original(*args)

    original = reference.sep_conv2d
    monkeypatch.setattr(reference, "sep_conv2d", spy)
    x, layer = random(1, 3, 5, 4), SepConv2d(3, 4)
    with fastsep.use_backend("reference"):
        layer(x)
    assert calls == ["reference"]
    if fastsep.backends()["cpu"].available:
        with fastsep.use_backend("cpu"):
            layer(x)
        assert calls == ["reference"]


def test_an_operator_that_no_kernel_has_is_put_together(
    cpu_kernels: None, weights: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack of blocks, on the kernels that there are."""
    first, second = weights(3, 7, torch.float32), weights(7, 5, torch.float32)
    blocks = [fastsep.BlockParameters(*first), fastsep.BlockParameters(*second, 1, 1)]
    affine = (random(6, seed=1), random(6, seed=2).requires_grad_())
    stripes = torch.tensor([[[0, 2, 5]], [[1, 0, 2]]])

    def results() -> list[Tensor]:
        y = fastsep.sep_conv2d_stack(random(2, 3, 8, 6), blocks, affine=affine, stripes=stripes)
        return [y, *torch.autograd.grad(y.sum(), affine[1:])]

    with fastsep.use_backend("cpu"):
        expected = results()
        monkeypatch.setitem(KERNELS, "sep_conv2d_stack", ())
        monkeypatch.setattr(operators, "sep_conv2d_stack", None)
        assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


def test_float64_stays_float64_under_autocast(backend: str) -> None:
    double = {name: w.double() for name, w in W.items()}
    with torch.autocast("cpu"):
        assert fastsep.sep_conv2d(X.double(), **double).dtype == torch.float64


def test_meta_tensors_give_shapes() -> None:
    y = fastsep.sep_conv2d_block(X.to("meta"), **{name: w.to("meta") for name, w in W.items()})
    assert y.device.type == "meta"
    assert y.shape == (2, 4, 4, 3)


def test_results_need_no_gradient_where_inputs_do_not(backend: str) -> None:
    assert not fastsep.sep_conv2d(X, **W).requires_grad
    with torch.inference_mode():
        assert fastsep.sep_conv2d_block(X, **W).is_inference()


def _of_each_function(weights: Draw) -> dict[str, Callable[[Tensor], Tensor]]:
    """The public functions of x (N, 3, T, F) alone, in float64."""
    block = weights(3, 4, torch.float64)
    layer = random(5, 3, dtype=torch.float64), random(5, dtype=torch.float64)
    learning = fastsep.BatchNormBlockParameters(*block[:3], beta=block[3])
    return {
        "conv": lambda x: fastsep.sep_conv2d(x, *block),
        "block": lambda x: fastsep.sep_conv2d_block(x, *block),
        "stack": lambda x: fastsep.sep_conv2d_stack(x, [fastsep.BlockParameters(*block)]),
        "bn block": lambda x: fastsep.sep_conv2d_bn_block(x, *learning[:5]),
        "bn stack": lambda x: fastsep.sep_conv2d_bn_stack(x, [learning]),
        "head": lambda x: fastsep.global_pool_mlp(x, [layer]),
    }


FUNCTIONS = ("conv", "block", "stack", "bn block", "bn stack", "head")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(weights: Draw, name: str) -> None:
    function = _of_each_function(weights)[name]
    x = random(3, 2, 3, 6, 5, dtype=torch.float64).requires_grad_()
    each = torch.stack([function(one) for one in x])
    (expected,) = torch.autograd.grad(each.square().sum(), x)
    y = torch.func.vmap(function)(x)
    torch.testing.assert_close(y, each)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], expected)
    grad = torch.func.grad(lambda one: function(one).square().sum())
    torch.testing.assert_close(torch.func.vmap(grad)(x), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode(weights: Draw, name: str) -> None:
    """What backward mode makes of a direction, forward mode makes of it too."""
    function = _of_each_function(weights)[name]
    x, direction = (random(2, 3, 6, 5, dtype=torch.float64, seed=i) for i in range(2))
    y, tangent = torch.func.jvp(function, (x,), (direction,))
    leaf = x.clone().requires_grad_()
    cotangent = random(*y.shape, dtype=torch.float64, seed=2)
    (gradient,) = torch.autograd.grad(function(leaf), leaf, cotangent)
    torch.testing.assert_close((tangent * cotangent).sum(), (gradient * direction).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = function(torch.autograd.forward_ad.make_dual(x, direction))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)


def _direction(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return torch.func.jvp(function, (x,), (v,))[1]


def _dual_direction(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Any:
    with torch.autograd.forward_ad.dual_level():
        y = function(torch.autograd.forward_ad.make_dual(x, v))
        return torch.autograd.forward_ad.unpack_dual(y).tangent


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return torch.func.grad(lambda x: (function(x) * function(x + v)).sum())(x)


def _one_by_one(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return torch.func.vmap(lambda x, v: function(x[None]) + function(v[None]))(x, v)


TRANSFORMS = {
    "jvp": _direction,
    "dual numbers": _dual_direction,
    "grad": _gradient,
    "vmap": _one_by_one,
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_transforms(weights: Draw, name: str, transform: Callable[..., Tensor]) -> None:
    """And once more without a transform, for which the kernels take over again."""
    if name.startswith("bn") and transform in (_direction, _dual_direction):
        pytest.skip("PyTorch cannot compile F.batch_norm in forward mode")
    function = _of_each_function(weights)[name]
    x, v = (random(2, 3, 6, 5, dtype=torch.float64, seed=i) for i in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, v: (transform(function, x, v), function(x)), fullgraph=True, backend="aot_eager"
    )
    got, y = compiled(x, v)
    expected = transform(function, x, v)
    assert expected.any()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(y, function(x))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_compiled_functions(weights: Draw, transform: Callable[..., Tensor]) -> None:
    function = _of_each_function(weights)["stack"]
    x, v = (random(2, 3, 6, 5, dtype=torch.float64, seed=i) for i in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(transform(compiled, x, v), transform(function, x, v))
    torch.testing.assert_close(compiled(x), function(x))


class Net(torch.nn.Module):
    """Every public function, with all that it may be given."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [fastsep.SepConvBlock(1, 6), fastsep.SepConvBlock(6, 4, dilation=1, pool=1)]
        self.stack = fastsep.SepConvStack(blocks)
        self.conv = SepConv2d(4, 5, bias=True)
        self.block, self.linear = fastsep.SepConvBlock(5, 3), torch.nn.Linear(3, 2)

    def forward(self, x: Tensor, stripes: Tensor) -> Tensor:
        scale = torch.full((x.shape[3],), 0.5)
        y = self.stack(x, affine=(scale, scale), stripes=stripes)
        layers = [(self.linear.weight, self.linear.bias)]
        return fastsep.global_pool_mlp(self.block(self.conv(y)), layers)


def net_and_inputs(clips: int = 2, frames: int = 19) -> tuple[Net, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    stripes = torch.tensor([[[0, 3, 6], [1, 2, 4]]]).repeat(clips, 1, 1)
    return Net().eval(), (random(clips, 1, frames, 14), stripes)


@pytest.mark.parametrize("training", [True, False])
def test_symbolic_trace_of_layers(backend: str, training: bool) -> None:
    """Their layers one by one, which go on sharing weights and statistics with the original."""
    net, inputs = net_and_inputs()
    twin = torch.fx.symbolic_trace(net.train(training))
    assert "bn" in twin.code and "sep_conv2d" in twin.code
    for source in (net, copy.deepcopy(net)):
        source.load_state_dict(net.state_dict())
        torch.testing.assert_close(twin(*inputs), source(*inputs), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            net.block.bn.running_var.mul_(2)
            net.conv.pointwise.mul_(2)
    for layer in (net.stack, net.stack[0], net.conv):
        shape = 2, layer.in_channels if isinstance(layer, SepConv2d) else 1, 9, 8
        x = random(*shape)
        torch.testing.assert_close(
            torch.fx.symbolic_trace(layer)(x), layer(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_symbolic_trace_of_functions(weights: Draw, name: str) -> None:
    function = _of_each_function(weights)[name]
    x = random(2, 3, 6, 5, dtype=torch.float64)
    twin = torch.fx.symbolic_trace(function)
    calls = [node.target for node in twin.graph.nodes if node.op == "call_function"]
    assert calls[-1].__module__ == "fastsep.functional"
    assert torch.equal(twin(x), function(x))
    assert torch.equal(copy.deepcopy(twin)(x), function(x))


@pytest.mark.parametrize("gradients", [True, False])
def test_jit_trace(backend: str, gradients: bool) -> None:
    """Every time, the first included: the tracer's own check sees the same graph again."""
    net, inputs = net_and_inputs()
    with torch.set_grad_enabled(gradients):
        traced = [torch.jit.trace(net, inputs) for _ in range(2)]
    for clips, frames in ((2, 19), (3, 27)):
        _, inputs = net_and_inputs(clips, frames)
        for again in traced:
            torch.testing.assert_close(again(*inputs), net(*inputs))


@pytest.mark.parametrize("gradients", [True, False])
def test_onnx_export(cpu_kernels: None, tmp_path: Path, gradients: bool) -> None:
    """Goes to PyTorch's own operators without being told, for any number of clips and frames."""
    onnxruntime = pytest.importorskip("onnxruntime")
    net, inputs = net_and_inputs()
    with torch.set_grad_enabled(gradients):
        net(*inputs)  # what layers remember must not matter
        torch.onnx.export(
            net, inputs, tmp_path / "net.onnx", dynamo=False, input_names=["x", "stripes"],
            dynamic_axes={"x": {0: "clips", 2: "frames"}, "stripes": {0: "clips"}},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for clips, frames in ((2, 19), (3, 27)):
        _, (x, stripes) = net_and_inputs(clips, frames)
        (got,) = session.run(None, {"x": x.numpy(), "stripes": stripes.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), net(x, stripes).detach())


def test_onnx_export_of_a_bare_stack(cpu_kernels: None, tmp_path: Path) -> None:
    """Whose optional arguments the exporter passes one by one, by position."""
    onnxruntime = pytest.importorskip("onnxruntime")
    net, (x, _) = net_and_inputs()
    for i, stack in enumerate((net.stack, to_eager(net.stack))):
        path = tmp_path / f"{i}.onnx"
        torch.onnx.export(stack, (x,), path, dynamo=False, input_names=["x"])
        (got,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), net.stack(x).detach())


def test_onnx_export_by_way_of_torch_export(
    cpu_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its newer exporter does, whose translator need not be installed here."""
    net, inputs = net_and_inputs()

    def namespaces() -> set[str]:
        program = torch.export.export(net, inputs, strict=False)
        targets = [node.target for node in program.graph.nodes]
        return {t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)}

    assert "fastsep" in namespaces()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert namespaces() == {"aten"}


def test_double_backward_works_where_the_error_sends_you(
    weights: Draw,
) -> None:
    inputs = [t.requires_grad_() for t in (random(1, 2, 5, 4), *weights(2, 3, torch.float32))]
    inputs = [t.detach().double().requires_grad_() for t in inputs]
    with fastsep.use_backend("reference"):
        assert torch.autograd.gradgradcheck(fastsep.sep_conv2d, inputs)
