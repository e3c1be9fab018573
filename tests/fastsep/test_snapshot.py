"""What changes in a block after `fuse`: not ignored, said once, looked at again."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import EXACT, random
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fastsep import fuse
from fastsep.batchnorm import batch_norm_affine
from fastsep.snapshot import Snapshot


class Block(nn.Module):
    """A block whose sizes are its own, too."""

    def __init__(self, cin: int = 3, cout: int = 6) -> None:
        super().__init__()
        self.mix = nn.Conv2d(cin, cout, 1, bias=False)
        self.down = nn.Conv2d(cout, cout, (3, 1), padding=(1, 0), groups=cout, bias=False)
        self.across = nn.Conv2d(cout, cout, (1, 3), padding=(0, 1), groups=cout, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(cout), nn.ReLU()
        self.window = 2
        self.options = {"stride": 2}
        self.squeeze = F.relu

    def forward(self, x: Tensor) -> Tensor:
        z = self.mix(x)
        y = self.squeeze(self.relu(self.bn(self.down(z) + self.across(z))))
        return F.avg_pool2d(y, self.window, **self.options)


class Plain(Block):
    """Without the second activation, which no fused operator has."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.mix(x)
        y = self.squeeze(self.bn(self.down(z) + self.across(z)))
        return F.avg_pool2d(y, self.window, **self.options)


X = random(2, 3, 12, 12)


def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(Plain(), Plain(6, 4)).double().eval()
    for bn in (model[0].bn, model[1].bn):
        nn.init.uniform_(bn.running_var, 0.5, 2)
        nn.init.uniform_(bn.running_mean, -0.5, 0.5)
    twin = copy.deepcopy(model)
    assert len(fuse(model).replaced) == 2
    return model, twin


def dilate(block: Any) -> None:
    block.down.dilation, block.down.padding = (2, 1), (2, 0)
    block.across.dilation, block.across.padding = (1, 2), (0, 2)


def fold_by_hand(block: Any) -> None:
    """As users do: into the convolutions, an Identity in its place."""
    scale, shift = batch_norm_affine(block.bn)
    with torch.no_grad():
        block.down.weight *= scale[:, None, None, None]
        block.across.weight *= scale[:, None, None, None]
    block.down.bias, block.bn = nn.Parameter(shift), nn.Identity()


def other_class(block: Any) -> None:
    class Quantised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).round()

    block.mix.__class__ = Quantised


# How it is changed, what is said, whether `fuse` knows the new block.
CHANGES: dict[str, tuple[Callable[[Any], Any], str, bool]] = {
    "dilation": (dilate, r"down.dilation is \(2, 1\), was \(1, 1\)|down.padding", True),
    "stride": (lambda b: setattr(b.mix, "stride", (2, 2)), "mix.stride", False),
    "padding mode": (lambda b: setattr(b.down, "padding_mode", "circular"), "padding_mode", False),
    "pooling": (
        lambda b: (setattr(b, "window", 3), b.options.update(stride=3)),
        "window is 3",
        True,
    ),
    "pooling in place": (lambda b: b.options.update(stride=1), "options is", False),
    "activation": (lambda b: setattr(b, "squeeze", F.silu), "squeeze is", False),
    "another layer": (
        lambda b: setattr(b, "mix", nn.Conv2d(6, 6, 1, bias=False)),
        "mix is another layer",
        True,
    ),
    "a layer with a bias": (
        lambda b: setattr(b, "mix", nn.Conv2d(6, 6, 1)),
        "mix is another layer",
        False,
    ),
    "a bias": (
        lambda b: setattr(b.down, "bias", nn.Parameter(torch.ones(6))),
        "bias is new",
        False,
    ),
    "folded by hand": (fold_by_hand, "down.bias is new", True),
    "a layer of another class": (other_class, "mix has another forward", False),
    "an attribute that is gone": (lambda b: b.__dict__.pop("window"), "window is gone", False),
}


@pytest.mark.parametrize(("change", "said", "fusable"), CHANGES.values(), ids=CHANGES)
def test_changes_are_honoured_and_said_once(
    backend: str, change: Callable[[Any], Any], said: str, fusable: bool
) -> None:
    model, twin = pair()
    first = model[0]
    for m in (model, twin):
        m[0] = nn.Identity()
        with torch.no_grad():
            m[1] = copy.deepcopy(m[1])
        torch.manual_seed(1)
        m.insert(1, Plain(3, 6))
        m[1].load_state_dict(first.state_dict())
    assert fuse(model.double().eval()).replaced
    twin.double().eval()
    for m in (model, twin):
        torch.manual_seed(2)
        if change is CHANGES["another layer"][0] or change is CHANGES["a layer with a bias"][0]:
            m[1].mix = nn.Conv2d(3, 6, 1, bias=change is not CHANGES["another layer"][0])
        else:
            change(m[1])
        m.double().eval()
    if "gone" in said and fusable is False and not hasattr(model[1], "window"):
        with pytest.warns(UserWarning, match=said), pytest.raises(AttributeError, match="window"):
            model(X)
        return
    with torch.no_grad(), pytest.warns(UserWarning, match=said) as caught:
        torch.testing.assert_close(model(X), twin(X), **EXACT)
        torch.testing.assert_close(model.train()(X), twin.train()(X), **EXACT)
    assert len(caught) == 1 and "fuse(model) again" in str(caught[0].message)
    report = fuse(model)
    assert list(report.replaced) == (["1"] if fusable else []), report
    assert list(report.left_alone) == ([] if fusable else ["1"]), report
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (False, True):
            torch.testing.assert_close(model.train(mode)(X), twin.train(mode)(X), **EXACT)


QUIET: dict[str, Callable[[Any], Any]] = {
    "a batch norm replaced by Identity": lambda b: setattr(b, "bn", nn.Identity()),
    "another batch norm": lambda b: setattr(b, "bn", nn.BatchNorm2d(6, eps=0.5)),
    "another kind of norm": lambda b: setattr(b, "bn", nn.InstanceNorm2d(6)),
    "group norm": lambda b: setattr(b, "bn", nn.GroupNorm(2, 6)),
    "parametrised weights": lambda b: parametrizations.weight_norm(b.down),
    "an attribute that is new": lambda b: setattr(b, "note", "seen"),
    "a hook": lambda b: b.mix.register_forward_hook(lambda _m, _x, y: 2 * y),
    "a hook on the norm": lambda b: b.bn.register_forward_hook(lambda _m, _x, y: 2 * y),
    "a forward": lambda b: (
        setattr(b.mix, "forward", b.mix._conv_forward)
        or setattr(b.mix, "forward", lambda x, m=b.mix: 2 * m._conv_forward(x, m.weight, None))
    ),
}


@pytest.mark.parametrize("change", QUIET.values(), ids=QUIET)
def test_what_needs_no_warning_is_honoured(backend: str, change: Callable[[Any], Any]) -> None:
    model, twin = pair()
    for m in (model, twin):
        torch.manual_seed(1)
        change(m[0])
        m.double().eval()
    with torch.no_grad():
        for mode in (False, True):
            torch.testing.assert_close(model.train(mode)(X), twin.train(mode)(X), **EXACT)


def test_parametrisations_come_and_go(backend: str) -> None:
    model, twin = pair()
    for m in (model, twin):
        parametrizations.weight_norm(m[0].mix)
    assert model[0].is_as_recognised()
    torch.testing.assert_close(model(X), twin(X), **EXACT)
    for m in (model, twin):
        nn.utils.parametrize.remove_parametrizations(m[0].mix, "weight")
    assert model[0].is_as_recognised()
    torch.testing.assert_close(model(X), twin(X), **EXACT)


def test_a_snapshot_holds_while_only_weights_and_modes_change() -> None:
    block = Block()
    snapshot = Snapshot(block, "bn")
    block.double().eval().requires_grad_(False)
    block.bn = nn.BatchNorm2d(6)
    nn.init.ones_(block.mix.weight)
    assert snapshot.holds() and snapshot.difference() is None
    handle = block.relu.register_forward_hook(lambda *_: None)
    assert not snapshot.holds() and snapshot.difference() is None  # hooks come and go
    handle.remove()
    assert snapshot.holds()
    block.relu.inplace = True
    assert not snapshot.holds() and snapshot.difference() == "relu.inplace is True, was False"
