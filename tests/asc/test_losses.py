import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from asc.losses import focal_loss, soft_cross_entropy


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def soft_targets(n: int, k: int) -> torch.Tensor:
    return torch.rand(n, k, dtype=torch.float64).softmax(dim=1)


def test_cross_entropy_matches_torch() -> None:
    logits = torch.randn(7, 10, dtype=torch.float64) * 3
    targets = soft_targets(7, 10)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), cross_entropy(logits, targets))


def test_focal_loss_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    by_hand = (
        0.3**2 * -math.log(0.7) + (0.5 * 0.75**2 * -math.log(0.25) + 0.5 * 0.5**2 * -math.log(0.5))
    ) / 2
    assert focal_loss(p.log(), targets, gamma=2.0).item() == pytest.approx(by_hand, rel=1e-12)
    by_hand = (0.3 * -math.log(0.7) + 0.5 * (0.75 * -math.log(0.25) + 0.5 * -math.log(0.5))) / 2
    assert focal_loss(p.log(), targets).item() == pytest.approx(by_hand, rel=1e-12)


def test_focal_loss_with_gamma_0_is_cross_entropy() -> None:
    logits, targets = torch.randn(5, 4, dtype=torch.float64), soft_targets(5, 4)
    torch.testing.assert_close(
        focal_loss(logits, targets, 0.0), soft_cross_entropy(logits, targets), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_gradient(gamma: float) -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = soft_targets(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: focal_loss(a, b, gamma), (logits, targets))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_saturated_logits_stay_finite(gamma: float) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]], requires_grad=True)
    targets = one_hot(torch.tensor([0, 2]), 3).float()
    loss = focal_loss(logits, targets, gamma) + soft_cross_entropy(logits, targets)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 2e4 / 2)  # the right answer costs 0, the wrong 2e4
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [soft_cross_entropy, focal_loss])
def test_errors(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(ValueError, match="one-hot"):
        loss(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="N > 0"):
        loss(torch.zeros(0, 4), torch.zeros(0, 4))
    with pytest.raises(TypeError, match="int64"):
        loss(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int64))


def test_negative_gamma() -> None:
    with pytest.raises(ValueError, match="gamma"):
        focal_loss(torch.zeros(1, 2), torch.zeros(1, 2), -1.0)
