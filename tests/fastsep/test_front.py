"""A fused block stays what it was but for its forward: class, methods, state, place, copies."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import EXACT, random
from torch import Tensor, fx, nn

from fastsep import fuse, unfuse
from fastsep.front import Front, behind, put, take_off
from fastsep.fusion import FusedSepConv


class Shout(Front):
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return behind(self).forward(self, *args, **kwargs) + 1


class Linear(nn.Linear):
    """Somebody's layer."""

    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
        return scale * super().forward(input)


def test_put_and_take_off() -> None:
    layer = Linear(3, 2)
    x, state = torch.ones(1, 3), dict(vars(layer))
    expected = layer(x, scale=2.0)
    assert put(Shout, layer)
    assert isinstance(layer, Linear) and isinstance(layer, Shout) and behind(layer) is Linear
    assert type(layer).__name__ == "Linear" and type(layer).__doc__ == Linear.__doc__
    assert torch.equal(layer(x, scale=2.0), expected + 1)
    for twin in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer) and torch.equal(twin(x, scale=2.0), expected + 1)
    take_off(layer)
    assert type(layer) is Linear and vars(layer) == state
    assert torch.equal(layer(x, scale=2.0), expected)


def test_where_nothing_can_be_put() -> None:
    patched = nn.ReLU()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert not put(Shout, patched) and type(patched) is nn.ReLU
    traced = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    kind = type(traced)
    assert not put(Shout, traced) and type(traced) is kind


class Cross(nn.Module):
    def __init__(self, cin: int = 3, cout: int = 6) -> None:
        super().__init__()
        self.mix = nn.Conv2d(cin, cout, 1, bias=False)
        self.down = nn.Conv2d(cout, cout, (3, 1), padding=(1, 0), groups=cout, bias=False)
        self.across = nn.Conv2d(cout, cout, (1, 3), padding=(0, 1), groups=cout, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.mix(x)
        return self.down(z) + self.across(z)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cross, self.bn, self.pool = Cross(), nn.BatchNorm2d(6), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.bn(self.cross(x))))


X = random(2, 3, 9, 8)


def fused(block: nn.Module) -> tuple[Any, Any]:
    """A model that holds the block, fused, and as it was."""
    torch.manual_seed(0)
    model = nn.Sequential(block).double().eval()
    twin = copy.deepcopy(model)
    report = fuse(model)
    assert list(report.replaced) == ["0"], report
    assert isinstance(model[0], FusedSepConv) and model[0].is_as_recognised()
    return model, twin


class OwnState(Block):
    """Saves its weights under names of the old days, and more than weights."""

    version = 3

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        prefix = kwargs.get("prefix", "")
        state = super().state_dict(*args, **kwargs)
        for key in [k for k in state if k.startswith(f"{prefix}cross.")]:
            state[key.replace(f"{prefix}cross.", f"{prefix}x_")] = state.pop(key)
        return state

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        for key in [k for k in state if k.startswith(f"{prefix}x_")]:
            state[key.replace(f"{prefix}x_", f"{prefix}cross.")] = state.pop(key)
        super()._load_from_state_dict(state, prefix, *args)

    def get_extra_state(self) -> Any:
        return {"version": self.version}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]


def test_state_dict_methods_are_the_blocks_own(backend: str) -> None:
    model, twin = fused(OwnState())
    model[0].version = twin[0].version = 5
    assert list(model.state_dict()) == list(twin.state_dict())
    assert "0.x_mix.weight" in model.state_dict()
    state = {k: 2 * v if isinstance(v, Tensor) else v for k, v in twin.state_dict().items()}
    other, plain = fused(OwnState())
    for m in (other, plain):
        m.load_state_dict(copy.copy(state))
        assert m[0].version == 5
    torch.testing.assert_close(other(X), plain(X), **EXACT)


def test_state_dict_hooks_are_the_blocks_own() -> None:
    def add(_: nn.Module, state: Any, prefix: str, _meta: Any) -> None:
        state[f"{prefix}more"] = torch.ones(1)

    block = Block()
    block.register_state_dict_post_hook(add)
    model, twin = fused(block)
    assert list(model.state_dict()) == list(twin.state_dict())
    assert "0.more" in model.state_dict()


def test_class_identity_and_subscripts(backend: str) -> None:
    parts = {"cross": Cross(), "bn": nn.BatchNorm2d(6), "act": nn.ReLU(), "pool": nn.AvgPool2d(2)}
    block = nn.Sequential(OrderedDict(parts))
    model, twin = fused(block)
    assert model[0] is block and isinstance(block, nn.Sequential) and len(block) == 4
    assert block[1] is block.bn and [type(m) for m in block] == [type(m) for m in twin[0]]
    assert type(block).__name__ == "Sequential"
    torch.testing.assert_close(model(X), twin(X), **EXACT)
    torch.testing.assert_close(block[:2](X), twin[0][:2](X), **EXACT)
    block[3] = twin[0][3] = nn.AvgPool2d(3)
    with pytest.warns(UserWarning, match="pool is another layer"):
        torch.testing.assert_close(model(X), twin(X), **EXACT)


class OnInstance(Block):
    """With methods and attributes of every kind."""

    scale = 2

    def __init__(self) -> None:
        super().__init__()
        self.tags = ["a"]

    @property
    def width(self) -> int:
        return self.cross.mix.out_channels

    @staticmethod
    def name() -> str:
        return "block"

    def __len__(self) -> int:
        return 3

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.applied = True
        return super()._apply(fn, recurse)


def test_methods_properties_and_attributes() -> None:
    model, _ = fused(OnInstance())
    block = model[0]
    assert (block.width, block.name(), len(block), block.scale) == (6, "block", 3, 2)
    block.tags.append("b")
    model.float()
    assert block.tags == ["a", "b"] and block.applied
    unfuse(model)
    assert type(model[0]) is OnInstance and "_fusion" not in vars(model[0])


def test_a_forward_put_on_the_instance_later_is_called(backend: str) -> None:
    """As tools do that wrap the forwards of all modules."""
    model, twin = fused(Block())
    for m in (model, twin):
        forward = m[0].forward
        m[0].forward = lambda x, forward=forward: 3 * forward(x)
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(X), twin.train(mode)(X), **EXACT)
    del model[0].forward, twin[0].forward
    torch.testing.assert_close(model(X), twin(X), **EXACT)


def test_arguments_by_name(backend: str) -> None:
    model, twin = fused(Block())
    torch.testing.assert_close(model[0](x=X), twin[0](x=X), **EXACT)
    with pytest.raises(TypeError, match="forward"):
        model[0](X, 1)


def test_the_model_may_be_traced_by_fx(backend: str) -> None:
    model, twin = fused(Block())
    torch.testing.assert_close(fx.symbolic_trace(model)(X), twin(X), **EXACT)


def test_batch_norms_converted_after_fusing(backend: str) -> None:
    model, twin = fused(Block())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model[0].bn, nn.SyncBatchNorm) and model[0].can_fold()
    torch.testing.assert_close(model(X), twin(X), **EXACT)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_look_at_their_own_layers(
    backend: str, duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    model, twin = fused(Block())
    with torch.no_grad():
        model(X)
        other: Any = duplicate(model)
        assert other[0].is_as_recognised()
        other[0].pool.kernel_size = 3
        with pytest.warns(UserWarning, match="pool.kernel_size is 3, was 2"):
            other(X)
        assert model[0].is_as_recognised()
        torch.testing.assert_close(model(X), twin(X), **EXACT)


class Taken(Block):
    def folded(self) -> bool:
        return False


def test_methods_of_the_same_name_are_not_hidden() -> None:
    model = nn.Sequential(Taken())
    report = fuse(model)
    assert list(report.replaced) == ["0.cross"]
    assert type(model[0]) is Taken and not model[0].folded()
