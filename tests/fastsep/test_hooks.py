"""Hooks, and what else calling a module may do: library layers and fused ones are as plain ones."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from foreign import EXACT, random, trained
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from fastsep import SepConv2d, SepConvBlock, SepConvStack, fuse
from fastsep.eager import EagerBlock, to_eager
from fastsep.hooks import has_global_hooks, has_hooks

WEIGHTS = {"pointwise": "pointwise", "time_taps": "time", "freq_taps": "freq"}  # in EagerConv


X = random(2, 1, 18, 12)


def pair() -> tuple[Any, Any]:
    """A stack of the library, and in PyTorch's layers."""
    torch.manual_seed(0)
    stack = trained(SepConvStack([SepConvBlock(1, 4), SepConvBlock(4, 6, pool=1)]))
    return stack, to_eager(stack)


def foreign_pair() -> tuple[Any, Any]:
    """Blocks of PyTorch's layers fused, and as they were."""
    _, eager = pair()
    model = nn.Sequential(*eager)
    twin = copy.deepcopy(model)
    assert len(fuse(model).replaced) == 2
    return model, twin


def old_weight_norm(conv: nn.Module, name: str, dim: int = 0) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form is deprecated, and used
        nn.utils.weight_norm(conv, name, dim=dim)


def old_spectral_norm(conv: nn.Module, name: str) -> None:
    torch.manual_seed(4)
    nn.utils.spectral_norm(conv, name)


def sets_weight(conv: nn.Module, name: str) -> None:
    """A pre-hook as people write them, which quantises."""
    weight = getattr(conv, name)
    del conv._parameters[name]
    conv.register_parameter(f"{name}_raw", weight)
    setattr(conv, name, weight.data)

    def hook(module: nn.Module, _: Any) -> None:
        setattr(module, name, (4 * getattr(module, f"{name}_raw")).tanh() / 4)

    conv.register_forward_pre_hook(hook)


SETTERS: dict[str, Callable[[nn.Module, str], Any]] = {
    "pruning": lambda conv, name: prune.l1_unstructured(conv, name, 0.5),
    "structured pruning": lambda conv, name: prune.ln_structured(conv, name, 0.5, n=2, dim=0),
    "old weight norm": old_weight_norm,
    "old spectral norm": old_spectral_norm,
    "a hook of one's own": sets_weight,
    "weight norm": lambda conv, name: parametrizations.weight_norm(conv, name),
    "spectral norm": lambda conv, name: (
        torch.manual_seed(4),
        parametrizations.spectral_norm(conv, name),
    ),
}


def life(model: nn.Module) -> list[Tensor]:
    """Outputs in training, after it, with frozen statistics, with other weights."""
    outputs = []
    torch.manual_seed(5)
    for mode in ("train", "frozen", "eval"):
        model.train(mode != "eval")
        if mode == "frozen":
            for bn in model.modules():
                if isinstance(bn, nn.BatchNorm2d):
                    bn.eval()
        for _ in range(2):
            y = model(X)
            y.square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            outputs.append(y.detach())
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            outputs.append(model(X).detach().clone())
    state = {k: 1.1 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        outputs.append(model(X))
    return outputs


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("setter", SETTERS.values(), ids=SETTERS)
def test_weights_that_are_computed(
    backend: str, setter: Callable[[nn.Module, str], Any], name: str
) -> None:
    """A 2d weight of the library is a 4d one of PyTorch; rows are what both know."""
    stack, twin = pair()
    setter(stack[1].conv, name)
    setter(twin[1].conv.get_submodule(WEIGHTS[name]), "weight")
    for got, wanted in zip(life(stack), life(twin), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", [True, False], ids=["before fuse", "after"])
@pytest.mark.parametrize("setter", SETTERS.values(), ids=SETTERS)
def test_weights_that_are_computed_in_fused_models(
    backend: str, setter: Callable[[nn.Module, str], Any], first: bool
) -> None:
    _, eager = pair()
    model: Any = nn.Sequential(*eager)
    twin = copy.deepcopy(model)
    for m in (model, twin):
        if m is model and not first:
            fuse(model)
        setter(m[1].conv.pointwise, "weight")
        setter(m[0].conv.time, "weight")
        setter(m[0].bn, "weight") if setter is SETTERS["pruning"] else None
        if m is model and first:
            fuse(model)
    for got, wanted in zip(life(model), life(twin), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


class Noise(nn.Module):
    """A parametrisation that is another with every look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.looks += 1
        return weight * self.looks


@pytest.mark.parametrize("mode", ["train", "some statistics frozen", "eval"])
def test_weights_are_looked_at_once_a_pass(backend: str, mode: str) -> None:
    stack, twin = pair()
    for m, names in ((stack, ("", "time_taps")), (twin, ("time", "weight"))):
        m.train(mode != "eval")
        if mode == "some statistics frozen":
            m[0].bn.eval()
        conv = m[0].conv.get_submodule(names[0])
        parametrize.register_parametrization(conv, names[1], Noise(), unsafe=True)
        conv.parametrizations[names[1]][0].looks = 0
    for _ in range(3):
        torch.testing.assert_close(stack(X), twin(X), **EXACT)


PLACES = ["", "0", "0.conv", "0.bn", "1.bn"]
REGISTER = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hooks_are_called_and_can_replace(
    backend: str, place: str, register: str, training: bool
) -> None:
    def hook(_: nn.Module, *values: Any) -> Any:
        value = values[-1] if register == "register_forward_hook" else values[0]
        calls.append(value)
        return 2 * value if isinstance(value, Tensor) else tuple(2 * v for v in value)

    stack, twin = pair()
    results = []
    for m in (stack, twin):
        calls: list[Any] = []
        handle = getattr(m.train(training).get_submodule(place), register)(hook)
        x = X.clone().requires_grad_()
        y = m(x)
        y.square().sum().backward()
        assert len(calls) == 1
        handle.remove()
        results.append([y, x.grad, m(x)])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@contextmanager
def on_all_modules(seen: list[str]) -> Iterator[None]:
    def hook(module: nn.Module, _: Any, y: Tensor) -> Tensor | None:
        if isinstance(module, (nn.BatchNorm2d, SepConv2d)):
            seen.append(type(module).__name__)
        return 2 * y if isinstance(module, nn.BatchNorm2d) else None

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        assert has_global_hooks()
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("pairs", [pair, foreign_pair])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hooks_on_all_modules(
    backend: str, pairs: Callable[[], tuple[Any, Any]], training: bool
) -> None:
    model, twin = pairs()
    seen: list[str] = []
    with on_all_modules(seen), torch.no_grad():
        y, alone = model.train(training)(X), model[1].train(training)(random(2, 4, 9, 6))
        assert seen.count("BatchNorm2d") == 3
        expected = twin.train(training)(X), twin[1].train(training)(random(2, 4, 9, 6))
    torch.testing.assert_close((y, alone), expected, **EXACT)
    assert not has_global_hooks()


class Doubles(nn.BatchNorm2d):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Negates(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Twice(SepConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoublesBlock(SepConvBlock):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Shifts(SepConvBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_what_counts_as_a_hook() -> None:
    assert has_hooks(Doubles(3)) and not has_hooks(Negates(3)) and not has_hooks(Twice(3, 3))
    patched = nn.ReLU()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert has_hooks(patched) and not has_hooks(nn.ReLU())


LAYERS: dict[str, Callable[[Any], None]] = {
    "own __call__": lambda b: setattr(b, "bn", Doubles(6)),
    "own forward": lambda b: setattr(b, "bn", Negates(6)),
    "Identity": lambda b: setattr(b, "bn", nn.Identity()),
    "instance norm": lambda b: setattr(b, "bn", nn.InstanceNorm2d(6)),
    "no norm": lambda b: setattr(b, "bn", None),
    "another convolution": lambda b: setattr(b, "conv", nn.Conv2d(4, 6, 3)),
    "a subclass": lambda b: setattr(b, "conv", Twice(4, 6)),
    "a bias": lambda b: setattr(b, "conv", SepConv2d(4, 6, bias=True)),
    "forward of the convolution": lambda b: setattr(b.conv, "forward", lambda x: x[:, [0] * 6]),
    "forward of the norm": lambda b: setattr(b.bn, "forward", lambda x: 2 * x),
    "synchronised norm": lambda b: setattr(b, "bn", nn.SyncBatchNorm(6)),
}


@pytest.mark.parametrize("change", LAYERS.values(), ids=LAYERS)
def test_other_layers_inside_a_block_are_called(
    backend: str, change: Callable[[Any], None]
) -> None:
    stack, _ = pair()
    torch.manual_seed(1)
    change(stack[1])
    stack.double().eval()
    with torch.no_grad():
        y = stack[0](X)
        z = stack[1].conv(y)
        bn = stack[1].bn
        expected = torch.relu(z if bn is None else bn(z))
        torch.testing.assert_close(stack[1](y), expected, **EXACT)
        torch.testing.assert_close(stack(X), expected, **EXACT)


@pytest.mark.parametrize("kind", [DoublesBlock, Shifts])
def test_subclasses_of_blocks_are_called(backend: str, kind: type[SepConvBlock]) -> None:
    stack = trained(SepConvStack([SepConvBlock(1, 4), kind(4, 6)])).eval()
    with torch.no_grad():
        expected = stack[1](stack[0](X))
        torch.testing.assert_close(stack(X), expected, **EXACT)
        plain = EagerBlock(stack[1], {})(stack[0](X))
        wanted = 2 * plain if kind is DoublesBlock else plain + 1
        torch.testing.assert_close(expected, wanted, **EXACT)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_anything_can_be_appended_to_a_stack(backend: str, training: bool) -> None:
    stack, twin = pair()
    for m in (stack, twin):
        m.append(nn.Tanh()).train(training)
    torch.testing.assert_close(stack(X), twin(X), **EXACT)
