"""`to_eager`: plain layers, the same numbers, and formats that know no private operators."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import EXACT, random, trained
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastsep
from fastsep import SepConv2d, SepConvBlock, SepConvStack, fold_batchnorm
from fastsep.eager import to_eager
from fastsep.modules import GlobalPool

PLAIN = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d, nn.Linear, nn.Sigmoid}


class Foreign(nn.Module):
    """A block as people write it, for `fuse`."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(cin, cout, 1, bias=False)
        self.down = nn.Conv2d(cout, cout, (3, 1), padding=(1, 0), groups=cout, bias=False)
        self.across = nn.Conv2d(cout, cout, (1, 3), padding=(0, 1), groups=cout, bias=False)
        self.bn, self.relu, self.pool = nn.BatchNorm2d(cout), nn.ReLU(), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.mix(x)
        return self.pool(self.relu(self.bn(self.down(z) + self.across(z))))


class Network(nn.Module):
    """Every kind of layer in one model, the stack called with its keywords."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.shift = nn.Parameter(torch.rand(24)), nn.Parameter(torch.rand(24))
        self.blocks = SepConvStack([SepConvBlock(1, 8), SepConvBlock(8, 6, dilation=1, pool=1)])
        self.lone = SepConvBlock(6, 5, dilation=3)
        self.foreign = nn.Sequential(Foreign(5, 7))
        self.conv, self.pool, self.fc = SepConv2d(7, 4, bias=True), GlobalPool(), nn.Linear(4, 3)

    def forward(self, x: Tensor, stripes: Tensor | None = None) -> Tensor:
        y = self.blocks(x, affine=(self.scale, self.shift), stripes=stripes)
        return self.fc(self.pool(self.conv(self.foreign(self.lone(y)))))


def network() -> Any:
    model = trained(Network())
    assert fastsep.fuse(model).replaced
    return model


STRIPES = torch.tensor([[[0, 3, 9], [1, 0, 4]], [[0, 0, 0], [1, 20, 24]]])


def convolutions(model: Any) -> list[Any]:
    """Those of `Network` that are fastsep's, or what stands in their place."""
    return [*(block.conv for block in (*model.blocks, model.lone)), model.conv]


def leaves(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules() if not list(module.children())}


@pytest.mark.parametrize("make", [network, lambda: fold_batchnorm(network())])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_network_keeps_its_numbers(
    backend: str, make: Callable[[], nn.Module], training: bool
) -> None:
    model = make().train(training)
    twin = to_eager(model)
    assert type(twin) is type(model)
    assert leaves(twin) - {type(to_eager(GlobalPool()))} <= PLAIN
    assert all(type(module) in PLAIN for module in to_eager(model.lone).modules()
               if not list(module.children()))  # fmt: skip
    x = random(2, 1, 40, 24)
    torch.testing.assert_close(twin(x, STRIPES), model(x, STRIPES), **EXACT)
    torch.testing.assert_close(twin(x), model(x), **EXACT)


def test_training_gradients_and_statistics_are_those_of_the_fused_modules(backend: str) -> None:
    model = network().train()
    twin = to_eager(model)
    x, x_twin = random(2, 1, 40, 24).requires_grad_(), random(2, 1, 40, 24).requires_grad_()
    for net, inputs in ((model, x), (twin, x_twin)):
        net(inputs, STRIPES).square().sum().backward()
    torch.testing.assert_close(x_twin.grad, x.grad, rtol=1e-9, atol=1e-9)
    pairs = [(model.scale, twin.scale), (model.fc.weight, twin.fc.weight)]
    for ours, plain in zip(convolutions(model), convolutions(twin), strict=True):
        weights = plain.pointwise.weight, plain.time.weight, plain.freq.weight
        pairs += zip((ours.pointwise, ours.time_taps, ours.freq_taps), weights, strict=True)
    pairs.append((model.conv.bias, twin.conv.time.bias))
    pairs += zip(model.blocks[0].bn.parameters(), twin.blocks[0].bn.parameters(), strict=True)
    for weight, other in pairs:
        torch.testing.assert_close(
            other.grad.reshape(weight.shape), weight.grad, rtol=1e-9, atol=1e-9
        )
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(theirs, ours, **EXACT)


def test_the_model_is_left_alone_and_shares_nothing() -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    twin = to_eager(model)
    for parameter in twin.parameters():
        parameter.data.fill_(7)
    for buffer in twin.buffers():
        buffer.fill_(7)
    twin.eval()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert list(map(id, model.modules())) == list(map(id, modules))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: SepConv2d(3, 5, dilation=3), (2, 3, 9, 8)),
        (lambda: SepConv2d(1, 5, bias=True), (2, 1, 9, 8)),
        (lambda: SepConvBlock(3, 5, pool=3), (2, 3, 9, 8)),
        (lambda: SepConvBlock(3, 1, dilation=20), (2, 3, 9, 8)),
        (lambda: fold_batchnorm(SepConvBlock(3, 5)), (2, 3, 9, 8)),
        (lambda: SepConvStack([SepConvBlock(1, 4), SepConvBlock(4, 3)]), (2, 1, 12, 9)),
        (GlobalPool, (2, 3, 9, 8)),
    ],
)
def test_the_model_may_be_a_layer(
    backend: str, layer: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model = trained(layer()).eval()
    twin = to_eager(model)
    assert not isinstance(twin, type(model))
    torch.testing.assert_close(twin(random(*shape)), model(random(*shape)), **EXACT)


def test_a_fused_block_becomes_the_original(backend: str) -> None:
    model = trained(nn.Sequential(Foreign(2, 4)))
    fastsep.fuse(model)
    with torch.no_grad():
        model[0].mix.weight.mul_(2)  # trained meanwhile
    x = random(2, 2, 9, 8)
    for twin in (to_eager(model)[0], to_eager(model[0])):  # type: ignore[index]
        assert type(twin) is Foreign
        torch.testing.assert_close(twin.eval()(x), model.eval()(x), **EXACT)
        assert twin.mix.weight is not model[0].mix.weight


def test_a_batch_norm_of_the_batch_stays_one(backend: str) -> None:
    block = SepConvBlock(3, 7)
    block.bn = nn.BatchNorm2d(7, track_running_stats=False)
    block.double().eval()
    x = random(4, 3, 9, 8)
    torch.testing.assert_close(to_eager(block)(x), block(x), **EXACT)


def test_mode_dtype_and_frozen_parameters_are_kept() -> None:
    stack = SepConvStack([SepConvBlock(1, 4), SepConvBlock(4, 3)]).bfloat16()
    bn = stack[1].bn
    assert bn is not None
    bn.eval()
    stack[0].conv.requires_grad_(False)
    twin: Any = to_eager(stack)
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert twin.training and twin[1].pool.training and not twin[1].bn.training
    assert not any(p.requires_grad for p in twin[0].conv.parameters())
    assert all(p.requires_grad for p in twin[1].parameters())
    assert all(p.is_meta for p in to_eager(SepConvBlock(1, 2).to("meta")).parameters())


def test_what_is_shared_stays_shared(backend: str) -> None:
    block = SepConvBlock(3, 3, pool=1)
    other = SepConvBlock(3, 3, pool=1)
    other.conv.pointwise = block.conv.pointwise
    model = trained(nn.Sequential(block, SepConvStack([block, other]))).eval()
    twin: Any = to_eager(model)
    assert twin[0] is twin[1][0]
    assert twin[0].conv.pointwise.weight is twin[1][1].conv.pointwise.weight
    torch.testing.assert_close(twin(random(1, 3, 5, 6)), model(random(1, 3, 5, 6)), **EXACT)


def test_parametrised_weights_count_as_they_are(backend: str) -> None:
    layer = parametrizations.weight_norm(SepConv2d(3, 4), "pointwise").double()
    with torch.no_grad():
        layer.parametrizations.pointwise.original0.mul_(3)  # type: ignore[union-attr]
    x = random(1, 3, 5, 6)
    torch.testing.assert_close(to_eager(layer)(x), layer(x), **EXACT)


def test_a_subclass_that_computes_something_else_is_kept(backend: str) -> None:
    class Doubled(SepConvBlock):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = trained(nn.Sequential(Doubled(3, 4))).eval()
    x = random(1, 3, 5, 6)
    twin = to_eager(model)
    torch.testing.assert_close(twin(x), model(x), **EXACT)
    assert {id(p) for p in twin.parameters()}.isdisjoint(map(id, model.parameters()))


# Export.


class Exported(nn.Module):
    """A folded network with stripes, as one function of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.network = fold_batchnorm(network()).float()

    def forward(self, x: Tensor, stripes: Tensor) -> Tensor:
        return self.network(x, stripes)


def exported() -> tuple[nn.Module, tuple[Tensor, Tensor], Tensor]:
    model = Exported().eval()
    inputs = random(2, 1, 40, 24).float(), STRIPES
    with torch.no_grad(), fastsep.use_backend("reference"):
        return to_eager(model), inputs, model(*inputs)


def test_onnx_export_gives_the_same_numbers(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    twin, inputs, expected = exported()
    path = tmp_path / "model.onnx"
    torch.onnx.export(twin, inputs, path, dynamo=False, opset_version=17,
                      input_names=["x", "stripes"], dynamic_axes={"x": {2: "T"}})  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x, stripes = (t.numpy() for t in inputs)
    got = session.run(None, {"x": x, "stripes": stripes})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    longer = random(2, 1, 57, 24, seed=3).float()  # another length than the one traced
    with torch.no_grad():
        expected = twin(longer, inputs[1])
    got = session.run(None, {"x": longer.numpy(), "stripes": stripes})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_torch_export_gives_aten_operators_and_the_same_numbers() -> None:
    twin, inputs, expected = exported()
    program = torch.export.export(twin, inputs)
    operators = [node.target for node in program.graph.nodes
                 if isinstance(node.target, torch._ops.OpOverload)]  # fmt: skip
    assert len(operators) > 20 and {operator.namespace for operator in operators} == {"aten"}
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_jit_trace_gives_the_same_numbers(tmp_path: Path) -> None:
    twin, inputs, expected = exported()
    with torch.no_grad():
        script = torch.jit.trace(twin, inputs)
        torch.jit.save(script, tmp_path / "model.pt")
        loaded = torch.jit.load(tmp_path / "model.pt")
        torch.testing.assert_close(loaded(*inputs), expected, rtol=1e-4, atol=1e-5)
    assert "fastsep::" not in str(loaded.inlined_graph)
