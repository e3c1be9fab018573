from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asc.augment import draw_stripes
from asc.checkpoint import load_model
from asc.model import Cnn6Sep
from asc.training.layers import in_torch_layers
from asc.training.settings import Settings, read_settings
from fastsep.modules import SepConv2d


def test_they_compute_the_same_with_the_models_own_weights() -> None:
    torch.manual_seed(0)
    model, twin = Cnn6Sep(3, dropout=0.0).double(), Cnn6Sep(3, dropout=0.0).double()
    twin.load_state_dict(model.state_dict())
    x, stripes = torch.randn(4, 1, 32, 256, dtype=torch.float64), draw_stripes(4, 32, 256)
    forward = in_torch_layers(model)
    for _ in range(2):  # the second time with weights that have changed
        expected, actual = twin(x, stripes), forward(x, stripes)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        for network, loss in ((model, actual), (twin, expected)):
            network.zero_grad()
            loss.square().sum().backward()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-7)
            mine.data.add_(0.01)
            theirs.data.add_(0.01)
    for name, tensor in twin.state_dict().items():  # running statistics too
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)
    model.eval()
    twin.eval()
    torch.testing.assert_close(forward(x, None), twin(x), rtol=1e-9, atol=1e-9)


def test_a_run_goes_on_with_the_other_layers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., dict[str, torch.Tensor]],
    settings: Settings,
) -> None:
    """From the same weights to nearly the same, without fastsep's convolution being asked."""
    reference = replace(settings, layers="reference")
    fused = train(tmp_path / "fused")
    with monkeypatch.context() as patch:
        patch.setattr(SepConv2d, "forward", None)
        plain = train(tmp_path / "plain", reference)
    assert plain.keys() == fused.keys()
    assert any(not torch.equal(plain[name], fused[name]) for name in fused)
    for name in fused:
        # Where a gradient is all rounding, Adam moves by lr whatever its sign: 6 steps each way.
        torch.testing.assert_close(plain[name], fused[name], rtol=0.1, atol=12e-3)
    for out, other in (("fused", reference), ("plain", settings)):
        train(tmp_path / out, other.with_epochs(4), resume=True)
        assert read_settings(tmp_path / out) == other.with_epochs(4)
        assert load_model(tmp_path / out / "folded.pt").is_folded
