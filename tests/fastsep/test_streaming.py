"""Stacks that `fuse` makes: that they run as one pass, and that nobody can tell but by the time."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from foreign import EXACT, random
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

import fastsep
from fastsep import SepConvBlock, SepConvStack, fold_batchnorm, fuse, streaming, unfuse
from fastsep.eager import to_eager
from fastsep.fusion import FusedSepConv
from fastsep.streaming import Promise


class Block(nn.Module):
    """A separable block as people write it."""

    def __init__(self, cin: int = 3, cout: int = 3, pool: int = 1) -> None:
        super().__init__()
        self.mix = nn.Conv2d(cin, cout, 1, bias=False)
        self.down = nn.Conv2d(cout, cout, (3, 1), padding=(1, 0), groups=cout, bias=False)
        self.across = nn.Conv2d(cout, cout, (1, 3), padding=(0, 1), groups=cout, bias=False)
        self.bn, self.relu, self.pool = nn.BatchNorm2d(cout), nn.ReLU(), nn.AvgPool2d(pool)

    def forward(self, x: Tensor) -> Tensor:
        z = self.mix(x)
        return self.pool(self.relu(self.bn(self.down(z) + self.across(z))))


class Chain(nn.Module):
    """Something before, four blocks, something after."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(12)
        self.conv1, self.conv2 = Block(1, 4), Block(4, 6, pool=2)
        self.conv3, self.conv4 = Block(6, 6), Block(6, 5, pool=2)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        x = self.conv4(self.conv3(self.conv2(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class Skip(Chain):
    """The second map is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        second = self.conv2(self.conv1(x))
        return self.conv4(second + self.conv3(second))


class Half(nn.Module):
    """Half of the chain in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Block(1, 4), Block(4, 6, pool=2))
        self.conv3, self.conv4 = Block(6, 6), Block(6, 5, pool=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv4(self.conv3(self.features(x))).square()


class Listed(nn.Module):
    """A loop over a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(1, 4), Block(4, 6), Block(6, 5), Block(5, 5)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Untraceable(nn.Module):
    """Its own forward is beyond torch.fx, that of its part is not."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Chain()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x if x.sum() > 0 else -x)


class Sampled(nn.Sequential):
    """A Sequential with a part that torch.fx cannot trace."""

    def __init__(self) -> None:
        class Shape(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if float(x.sum()) > 0 else -x

        super().__init__(Shape(), Block(1, 4), Block(4, 4), Block(4, 4), Block(4, 6))


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Identity(), Block(1, 4), Block(4, 6, pool=2), Block(6, 6), Block(6, 5, pool=2), nn.ReLU()
    )


def nested() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(Block(1, 4), Block(4, 6, pool=2)), nn.Sequential(Block(6, 6), Block(6, 5))
    )


def trained(module: nn.Module) -> Any:
    """In float64 and eval mode, with the batch norms of a network that has seen data."""
    rng = torch.Generator().manual_seed(1)
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.2)
    return module.double().eval()


def pair(make: Callable[[], nn.Module]) -> tuple[Any, Any]:
    """A model fused, and as it was."""
    torch.manual_seed(0)
    model = trained(make())
    twin = copy.deepcopy(model)
    assert fuse(model).stacks
    return model, twin


X = random(2, 1, 18, 12)
MODELS = [Chain, Half, Listed, Untraceable, sequential, nested]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of each call of the operators that inference uses, in order."""
    calls: list[int] = []
    block, stack = streaming.sep_conv2d_block, streaming.sep_conv2d_stack
    monkeypatch.setattr(
        streaming, "sep_conv2d_block", lambda *a, **k: calls.append(1) or block(*a, **k)
    )
    monkeypatch.setattr(
        streaming, "sep_conv2d_stack", lambda x, b: calls.append(len(b)) or stack(x, b)
    )
    return calls


def check(
    model: nn.Module, twin: nn.Module, calls: list[int], expected: list[int], x: Tensor = X
) -> None:
    """The plain model's numbers, by these operators."""
    calls.clear()
    with torch.no_grad():
        y = model(x)
        assert calls == expected
        assert type(y) is Tensor
        torch.testing.assert_close(y, twin(x), **EXACT)


@pytest.mark.parametrize("make", MODELS)
def test_a_chain_runs_as_one_stack(
    backend: str, ran: list[int], make: Callable[[], nn.Module]
) -> None:
    model, twin = pair(make)
    check(model, twin, ran, [4])
    with torch.inference_mode():
        torch.testing.assert_close(model(X), twin(X), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", MODELS)
def test_the_stack_gives_the_bits_of_its_blocks(
    backend: str, ran: list[int], make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    model, x = pair(make)[0].to(dtype), X.to(dtype)
    with torch.no_grad():
        y = model(x)
        blocks = [m for m in model.modules() if isinstance(m, FusedSepConv)]
        handles = [m.register_forward_hook(lambda *_: None) for m in blocks]
        ran.clear()
        assert torch.equal(model(x), y)
        assert ran == [1, 1, 1, 1]
        for handle in handles:
            handle.remove()
        assert torch.equal(model(x), y)
        assert ran[4:] == [4]


def test_streaming_reaches_the_operator(cpu_kernels: None) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "fastsep":
                names.append(func._opname)
            return func(*args, **kwargs)

    model, _ = pair(Chain)
    with fastsep.use_backend("cpu"), torch.no_grad(), Spy():
        model(X)
    assert names == ["sep_conv2d_stack"]


def test_what_the_report_says() -> None:
    model = nn.Sequential(Half(), Skip(), nn.Sequential(Block()))
    report = fuse(model)
    assert report.stacks == [
        ["0.features.0", "0.features.1", "0.conv3", "0.conv4"],
        ["1.conv1", "1.conv2"],
        ["1.conv4", "2"],
    ]
    assert "fused       0.features.0 ... 0.conv4: stack of 4 blocks" in str(report).splitlines()
    assert "stack of 2 blocks" in str(report)
    assert not fuse(model).stacks and str(fuse(model)) == "found no separable convolutions"


def test_a_skip_connection_ends_the_stack(backend: str, ran: list[int]) -> None:
    model, twin = pair(Skip)
    check(model, twin, ran, [2, 1, 1])


def test_a_block_that_is_used_twice(backend: str, ran: list[int]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = Block(1, 3), Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(self.again(self.first(x))))

    model, twin = pair(Twice)
    check(model, twin, ran, [2, 1, 1])  # it is followed by itself, then by another


def test_a_sequential_that_is_used_twice(backend: str, ran: list[int]) -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(Block(1, 3), Block())

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x) - self.features(2 * x)

    model, twin = pair(Siamese)
    check(model, twin, ran, [2, 2])


# What users do to single blocks.


@pytest.mark.parametrize("make", [Chain, sequential])
def test_a_block_can_be_called_alone(
    backend: str, ran: list[int], make: Callable[[], nn.Module]
) -> None:
    model, twin = pair(make)
    name = "conv2" if make is Chain else "2"
    block, plain = model.get_submodule(name), twin.get_submodule(name)
    check(block, plain, ran, [1], random(2, 4, 8, 8))


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_on_a_block(backend: str, ran: list[int], register: str) -> None:
    model, twin = pair(Chain)
    seen: list[type] = []

    def hook(module: nn.Module, *values: Any) -> None:
        seen.extend(type(v[0] if isinstance(v, tuple) else v) for v in values)

    handle = getattr(model.conv3, register)(hook)
    check(model, twin, ran, [2, 1, 1])
    assert set(seen) <= {Tensor} and bool(seen) == ("forward" in register)
    handle.remove()
    check(model, twin, ran, [4])


def test_a_hook_that_changes_the_map(backend: str, ran: list[int]) -> None:
    model, twin = pair(Half)
    for m in (model, twin):
        m.features[1].register_forward_hook(lambda _m, _x, y: 2 * y)
        m.conv4.register_forward_pre_hook(lambda _m, x: (x[0] + 1,))
    check(model, twin, ran, [1, 1, 1, 1])


@pytest.mark.parametrize("where", ["features", "features.0"])
def test_a_hook_that_keeps_the_map(backend: str, ran: list[int], where: str) -> None:
    """Also one on a container that the chain passes through."""
    model, twin = pair(Half)
    kept: list[Tensor] = []
    for m in (model, twin):
        m.get_submodule(where).register_forward_hook(lambda _m, _x, y: kept.append(y))
    check(model, twin, ran, [2, 2] if where == "features" else [1, 3])
    assert all(type(map_) is Tensor for map_ in kept)
    torch.testing.assert_close(*kept, **EXACT)


def test_a_hook_on_all_modules(backend: str, ran: list[int]) -> None:
    model, twin = pair(Chain)
    shapes: list[torch.Size] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda _m, _x, y: shapes.append(y.shape) if type(y) is Tensor else shapes.clear()
    )
    try:
        with torch.no_grad():
            model(X)
            called = shapes.copy()
            shapes.clear()
            twin(X)
    finally:
        handle.remove()
    assert called == shapes and len(shapes) == 31
    check(model, twin, ran, [4])


@pytest.mark.parametrize("name", ["mix", "bn", "pool"])
def test_a_hook_inside_a_block(backend: str, ran: list[int], name: str) -> None:
    """The fused operator would not call it: that block runs as it was written."""
    model, twin = pair(Chain)
    calls: list[nn.Module] = []
    for m in (model, twin):
        m.conv2.get_submodule(name).register_forward_hook(
            lambda m, _x, y: calls.append(m) or 2 * y  # type: ignore[func-returns-value]
        )
    check(model, twin, ran, [1, 2])
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["conv2", "conv3.mix"])
def test_a_part_that_is_compiled_by_itself(backend: str, name: str) -> None:
    model, twin = pair(Chain)
    torch._dynamo.reset()
    model.get_submodule(name).compile(backend="eager")
    for mode in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(model.train(mode)(X), twin.train(mode)(X), **EXACT)


@pytest.mark.parametrize("make", [Chain, sequential, nested])
def test_traced_by_fx(backend: str, make: Callable[[], nn.Module]) -> None:
    model, twin = pair(make)
    torch.testing.assert_close(fx.symbolic_trace(model)(X), twin(X), **EXACT)


@pytest.mark.parametrize("training", [False, True])
def test_pruning_a_layer_of_a_block(backend: str, training: bool) -> None:
    """Its weight is computed by a hook from what is trained."""
    model, twin = pair(Chain)
    for m in (model, twin):
        prune.l1_unstructured(m.conv2.mix, "weight", amount=0.5)
        prune.ln_structured(m.conv3.down, "weight", amount=2, n=2, dim=0)
        m.train(training)
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(2):
            m(X).square().sum().backward()
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(X), twin.eval()(X), **EXACT)
    for m in (model, twin):
        prune.remove(m.conv2.mix, "weight")
        prune.remove(m.conv3.down, "weight")
    with torch.no_grad():
        torch.testing.assert_close(model(X), twin(X), **EXACT)


def test_parametrised_weights_stay_in_the_stack(backend: str, ran: list[int]) -> None:
    model, twin = pair(Chain)
    for m in (model, twin):
        parametrizations.weight_norm(m.conv2.mix)
        with torch.no_grad():
            m.conv2.mix.parametrizations.weight.original0.mul_(2)
    check(model, twin, ran, [4])


REPLACEMENTS: dict[str, tuple[Callable[[Any], None], list[int]]] = {
    "another layer": (lambda m: setattr(m, "conv3", nn.Conv2d(6, 6, 3, padding=1)), [2, 1]),
    "nothing": (lambda m: setattr(m, "conv3", nn.Identity()), [2, 1]),
    "a plain block": (lambda m: setattr(m, "conv3", Block(6, 6)), [2, 1]),
    "another ReLU": (lambda m: setattr(m.conv3, "relu", nn.GELU()), [2, 1]),
    "another convolution": (lambda m: setattr(m.conv3, "mix", nn.Conv2d(6, 6, 1)), [2, 1]),
    "another batch norm": (lambda m: setattr(m.conv3, "bn", nn.BatchNorm2d(6, eps=0.5)), [4]),
    "no batch norm": (lambda m: setattr(m.conv3, "bn", nn.Identity()), [2, 1]),
    "another forward inside": (lambda m: setattr(m.conv3.bn, "forward", lambda x: x + 1), [2, 1]),
    "another forward": (lambda m: setattr(m.conv3, "forward", lambda x: x.abs()), [2, 1]),
    "batch statistics": (lambda m: m.conv3.bn.train(), [2, 1]),
}


@pytest.mark.parametrize(("replace", "expected"), REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_replaced_parts(
    backend: str, ran: list[int], replace: Callable[[Any], None], expected: list[int]
) -> None:
    model, twin = pair(Chain)
    for m in (model, twin):
        torch.manual_seed(3)
        replace(m)
        m.double()
        if expected == [4]:
            m.eval()
    check(model, twin, ran, expected)


def test_no_statistics_in_one_block(backend: str, ran: list[int]) -> None:
    model, twin = pair(Chain)
    for m in (model, twin):
        bn = m.conv1.bn
        bn.running_mean = bn.running_var = bn.num_batches_tracked = None
    check(model, twin, ran, [3])


def test_what_users_do_to_a_sequential(backend: str, ran: list[int]) -> None:
    model, twin = pair(sequential)
    x = random(2, 6, 9, 9)
    assert [type(m) for m in model] == [type(model[i]) for i in range(len(model))]
    check(model[3:5], twin[3:5], ran, [2], x)
    check(model[-2:], twin[-2:], ran, [1], x)
    y = x
    for layer in model[3:]:
        y = layer(y)
    torch.testing.assert_close(y, twin[3:](x), **EXACT)
    for m in (model, twin):
        torch.manual_seed(5)
        m.append(Block(5, 5).double().eval())
    check(model, twin, ran, [4])
    fuse(model)
    check(model, twin, ran, [4, 1])
    for m in (model, twin):
        del m[-2]
    check(model, twin, ran, [5])
    for m in (model, twin):
        del m[3]
    check(model, twin, ran, [4])
    for m in (model, twin):
        torch.manual_seed(7)
        m.insert(2, nn.Tanh())
        m[4] = nn.Conv2d(6, 5, 1).double()
    check(model, twin, ran, [1, 1, 1])
    names = list(model.state_dict())
    unfuse(model)
    assert type(model) is nn.Sequential and names == list(twin.state_dict())
    check(model, twin, ran, [])


class Flagged(Chain):
    """Takes another way than the one that `fuse` saw."""

    features = later = in_place = early = inner_grad = False
    kept: Any = None

    def forward(self, x: Tensor) -> Any:
        y1 = self.conv1(x)
        if self.in_place:
            y1 += 1
        y2 = self.conv2(y1)
        if self.later:
            self.kept = y2
        if self.early:
            return y2
        if self.inner_grad:
            with torch.enable_grad():
                return self.conv4(self.conv3(y2))
        y4 = self.conv4(self.conv3(y2))
        return (y4, {"maps": [y1, y2]}) if self.features else y4


@pytest.mark.parametrize("flag", ["features", "later", "in_place", "early", "inner_grad"])
def test_a_forward_that_changes_its_mind(backend: str, flag: str) -> None:
    model, twin = pair(Flagged)
    setattr(model, flag, True)
    setattr(twin, flag, True)
    with torch.no_grad():
        got, wanted = model(X), twin(X)
    torch.testing.assert_close(got, wanted, **EXACT)
    flat, _ = torch.utils._pytree.tree_flatten(got)
    assert all(type(map_) is Tensor for map_ in flat)
    if flag == "later":
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()  # what was promised under the old weights was kept under them
        torch.testing.assert_close(model.kept + 0, twin.kept, **EXACT)
    if flag == "inner_grad":
        got.sum().backward()
        assert model.conv4.mix.weight.grad is not None and model.conv1.mix.weight.grad is None


def test_a_forward_that_raises_leaves_nothing_behind(backend: str, ran: list[int]) -> None:
    model, twin = pair(Chain)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError, IndexError)):
        model(random(2, 3, 18, 12))
    check(model.conv1, twin.conv1, ran, [1])
    check(model, twin, ran, [4])


LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda y: y.shape,
    "numpy": lambda y: y.numpy(),
    "item": lambda y: y.sum().item(),
    "list": lambda y: y.tolist(),
    "repr": repr,
    "format": lambda y: f"{y.mean():.3f}",
    "copy": copy.deepcopy,
    "shallow copy": copy.copy,
    "pickle": lambda y: pickle.loads(pickle.dumps(y)),
    "index": lambda y: y[0, :, 1],
    "cat": lambda y: torch.cat([y, y]),
    "in place": lambda y: y.mul_(2) + y,
    "comparison": lambda y: y > 0,
    "view": lambda y: y.view(-1)[3:],
    "iteration": list,
    "length": len,
    "layout": lambda y: (y.stride(), y.is_contiguous(), y.dtype, y.device, y.layout, y.ndim),
    "convolution": lambda y: nn.functional.conv2d(y, torch.ones(1, 3, 1, 1).to(y)),
    "out": lambda y: torch.add(1, 1, out=torch.empty(0)) + y.float(),
    "data": lambda y: y.data,
    "detach": lambda y: y.detach(),
    "storage": lambda y: y.untyped_storage().nbytes(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_promise_is_kept_when_somebody_looks(backend: str, look: Callable[[Tensor], Any]) -> None:
    block = trained(nn.Sequential(Block(1, 3)))
    fuse(block)
    with torch.no_grad():
        y = block(X)
        promise = Promise(X, [block[0].inference_parameters()])
        assert isinstance(promise, Tensor)
        got, wanted = look(promise), look(y)
        if isinstance(wanted, Tensor):
            assert type(got) is Tensor
        if not isinstance(wanted, Tensor | list | np.ndarray):
            assert got == wanted
        else:
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        torch.testing.assert_close(promise + 0, y, rtol=0, atol=0)  # in place: both changed


# The rest of what holds for fused models.


@pytest.mark.parametrize("make", MODELS)
def test_training_goes_block_by_block(
    backend: str, ran: list[int], make: Callable[[], nn.Module]
) -> None:
    model, twin = pair(make)
    for mode in (True, False):
        ran.clear()
        for m in (model, twin):
            m.train(mode).zero_grad()
            m(X).square().sum().backward()
        assert ran == ([] if mode else [1, 1, 1, 1])
        for got, wanted in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **EXACT)
    check(model, twin, ran, [4])


@pytest.mark.parametrize("make", MODELS)
def test_names_classes_and_unfuse(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = trained(make())
    twin = copy.deepcopy(model)
    kinds = [type(m) for m in model.modules()]
    state, hooks = list(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    text = repr(model)
    fuse(model)
    assert isinstance(model, type(twin)) and type(model).__name__ == type(twin).__name__
    assert list(model.state_dict()) == state
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert [n for n, _ in model.named_modules()] == [n for n, _ in twin.named_modules()]
    unfuse(model)
    assert [type(m) for m in model.modules()] == kinds
    assert repr(model) == text
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in twin.modules()]


@pytest.mark.parametrize("make", [Chain, sequential, nested])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_run_as_stacks(
    backend: str,
    ran: list[int],
    make: Callable[[], nn.Module],
    duplicate: Callable[[nn.Module], nn.Module],
) -> None:
    model, twin = pair(make)
    other = duplicate(model)
    check(other, twin, ran, [4])
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    check(model, twin, ran, [4])
    unfuse(other)
    assert type(other) is type(twin)
    check(model, twin, ran, [4])


def test_a_shallow_copy_runs_its_own_blocks(backend: str, ran: list[int]) -> None:
    """As torch.nn.DataParallel makes them."""
    model, _ = pair(Chain)
    replica = copy.copy(model)
    replica._modules = dict(model._modules)
    replica.conv3 = nn.Identity()
    with torch.no_grad():
        ran.clear()
        assert not torch.equal(replica(X), model(X))
    assert ran == [2, 1, 4]


def test_functional_call_and_transforms(backend: str, ran: list[int]) -> None:
    model, twin = pair(Chain)
    state = {k: 1.1 * v for k, v in model.state_dict().items() if v.is_floating_point()}
    with torch.no_grad():
        y, expected = (torch.func.functional_call(m, state, X) for m in (model, twin))
    assert ran == [4]
    torch.testing.assert_close(y, expected, **EXACT)
    check(model, twin, ran, [4])
    with torch.no_grad():
        y, expected = (torch.func.jvp(m, (X,), (X,))[0] for m in (model, twin))
    torch.testing.assert_close(y, expected, **EXACT)
    y, expected = (torch.func.jvp(m, (X,), (X,))[1] for m in (model, twin))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


def test_autocast_goes_block_by_block(backend: str, ran: list[int]) -> None:
    model = pair(Chain)[0].float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(X.float()).dtype == torch.bfloat16
    assert ran == [1, 1, 1, 1]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [Chain, sequential])
def test_compiled_and_exported(
    backend: str, fresh_dynamo: None, make: Callable[[], nn.Module]
) -> None:
    model, twin = pair(make)
    with torch.no_grad():
        expected = twin(X)
        for run in (
            torch.compile(model, fullgraph=True, backend="aot_eager"),
            torch.export.export(model, (X,)).module(),
            torch.jit.trace(model, (X,), check_trace=False),  # folds anew the second time
        ):
            torch.testing.assert_close(run(X), expected, **EXACT)
            torch.testing.assert_close(run(2 * X), twin(2 * X), **EXACT)


def test_threads_share_a_model(backend: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, twin = pair(Chain)

    def infer(i: int) -> Tensor:
        with torch.no_grad():
            return model(random(1, 1, 18, 12, seed=i))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(infer, range(40)))
    with torch.no_grad():
        for i, y in enumerate(results):
            torch.testing.assert_close(y, twin(random(1, 1, 18, 12, seed=i)), **EXACT)


@pytest.mark.parametrize("make", MODELS)
def test_eager_and_folded_copies(
    backend: str, ran: list[int], make: Callable[[], nn.Module]
) -> None:
    model, twin = pair(make)
    eager, folded = to_eager(model), fold_batchnorm(model)
    assert [type(m) for m in eager.modules()] == [type(m) for m in twin.modules()]
    check(eager, twin, ran, [])
    assert sum(isinstance(m, SepConvBlock) and m.bn is None for m in folded.modules()) == 4
    check(folded, twin, ran, [4])
    next(m for m in folded.modules() if isinstance(m, SepConvBlock)).train()  # all the same to it
    check(folded, twin, ran, [4])


def test_a_block_that_was_changed_inside_is_not_folded(backend: str, ran: list[int]) -> None:
    model, twin = pair(Chain)
    for m in (model, twin):
        m.conv2.relu = nn.GELU()
        m.conv3.bn.register_forward_hook(lambda _m, _x, y: 2 * y)
    check(fold_batchnorm(model), twin, ran, [1, 1])


@pytest.mark.parametrize("after_unfuse", [False, True])
def test_hooks_survive_and_can_be_removed(backend: str, after_unfuse: bool) -> None:
    model, twin = pair(Chain)
    handles = [m.conv2.register_forward_hook(lambda _m, _x, y: 2 * y) for m in (model, twin)]
    for m in (model, twin):
        m.conv3.register_full_backward_hook(lambda _m, gx, _g: (3 * gx[0],))
    if after_unfuse:
        unfuse(model)
    for _ in range(2):
        for m in (model, twin):
            m.zero_grad()
            m(X).square().sum().backward()
        for got, wanted in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-9, atol=1e-9)
        for handle in handles:
            handle.remove()


def test_state_dict_hooks_of_a_block_stay(backend: str) -> None:
    torch.manual_seed(0)
    model = trained(Chain())
    old = {k.replace("conv2.mix", "conv2.pointwise"): v for k, v in model.state_dict().items()}

    def rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        state[f"{prefix}mix.weight"] = state.pop(f"{prefix}pointwise.weight")

    model.conv2.register_load_state_dict_pre_hook(rename)
    assert fuse(model).stacks
    model.load_state_dict(old, strict=True)


# The library's own blocks.


def own() -> SepConvStack:
    torch.manual_seed(0)
    return trained(SepConvStack([SepConvBlock(1, 4), SepConvBlock(4, 6), SepConvBlock(6, 5)]))


@pytest.mark.parametrize("path", ["1", "1.conv", "1.bn"])
@pytest.mark.parametrize("training", [False, True])
def test_hooks_in_a_stack_of_the_library_are_called(
    backend: str, path: str, training: bool
) -> None:
    model = own().train(training)
    twin = to_eager(model)
    for m in (model, twin):
        m.get_submodule(path).register_forward_hook(lambda _m, _x, y: 2 * y)
    torch.testing.assert_close(model(X), twin(X), **EXACT)


@pytest.mark.parametrize("folded", [False, True])
def test_a_pruned_stack_of_the_library(backend: str, folded: bool) -> None:
    """What is pruned is computed anew by a hook from what is trained, in eval mode too."""
    model = fold_batchnorm(own()) if folded else own()
    prune.l1_unstructured(model[1].conv, "pointwise", amount=0.5)
    with torch.no_grad():
        before = model(X)
        model[1].conv.pointwise_orig.mul_(2)
        expected = own() if not folded else fold_batchnorm(own())
        expected[1].conv.pointwise.copy_(2 * expected[1].conv.pointwise)
        expected[1].conv.pointwise.mul_(model[1].conv.pointwise_mask)
        assert not torch.equal(model(X), before)
        torch.testing.assert_close(model(X), expected(X), **EXACT)


def test_what_the_forward_stores_while_it_is_looked_at_is_forgotten() -> None:
    class Logging(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.log: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(x.mean())
            return super().forward(x)

    model, twin = pair(Logging)
    assert model.log == []
    copy.deepcopy(model)
    torch.testing.assert_close(model(X), twin(X), **EXACT)


def test_the_class_of_the_model_hears_of_no_subclass() -> None:
    class Registered(Chain):
        names: ClassVar[list[str]] = []

        def __init_subclass__(cls) -> None:
            cls.names.append(cls.__name__)

    pair(Registered)
    assert Registered.names == []
