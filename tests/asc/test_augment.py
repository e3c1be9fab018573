import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from asc.augment import SpecAugment, apply_stripes, draw_stripes, mixup
from asc.losses import focal_loss, soft_cross_entropy

FakeGpu = Callable[..., Any]  # the fixture of conftest


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stripe_statistics() -> None:
    n = 20_000
    stripes = draw_stripes(n, 431, 256, generator=generator())
    assert stripes.shape == (n, 4, 3)
    assert stripes.dtype == torch.int32
    axis, start, stop = stripes.unbind(-1)
    assert (axis == torch.tensor([0, 0, 1, 1])).all()
    width = stop - start
    for which, size, bound in ((0, 431, 128), (1, 256, 32)):
        w = width[axis == which].double()
        s = start[axis == which].double()
        # Every width of [0, bound) and no other: the rarest is expected n * 2 / 128 = 312 times.
        assert set(w.int().tolist()) == set(range(bound))
        assert (w + s).max() <= size - 1  # start < size - width
        assert s.min() == 0
        # Uniform: means within 5 standard errors.
        error = bound / math.sqrt(12 * 2 * n)
        assert abs(w.mean() - (bound - 1) / 2) < 5 * error
        u = (s + 0.5) / (size - w)  # in (0, 1), uniform whatever the width
        assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * 2 * n)
        assert abs(u.var() - 1 / 12) < 5 / math.sqrt(180 * 2 * n)
        assert abs(torch.corrcoef(torch.stack([w, u]))[0, 1]) < 5 / math.sqrt(2 * n)


def test_stripes_are_independent_of_each_other() -> None:
    width = draw_stripes(10_000, 431, 256, generator=generator()).diff(dim=-1)[..., -1].double()
    correlation = torch.corrcoef(width.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(10_000)


def test_stripes_reproducible() -> None:
    first = draw_stripes(5, 40, 30, generator=generator(3))
    assert torch.equal(first, draw_stripes(5, 40, 30, generator=generator(3)))
    assert not torch.equal(first, draw_stripes(5, 40, 30, generator=generator(4)))
    torch.manual_seed(3)
    assert torch.equal(first, draw_stripes(5, 40, 30))


def test_width_is_clamped_to_the_axis() -> None:
    stripes = draw_stripes(2000, 3, 1, time_width=128, freq_width=32, generator=generator())
    axis, start, stop = stripes.unbind(-1)
    width = stop - start
    assert set(width[axis == 0].tolist()) == {0, 1, 2}
    assert set(width[axis == 1].tolist()) == {0}
    assert (start >= 0).all()
    assert (stop[axis == 0] <= 2).all()
    assert (start[axis == 1] == 0).all()


def test_stripe_counts() -> None:
    assert draw_stripes(0, 10, 10).shape == (0, 4, 3)
    assert draw_stripes(2, 10, 10, stripes=0).shape == (2, 0, 3)
    assert draw_stripes(2, 10, 10, stripes=3).shape == (2, 6, 3)


@pytest.mark.parametrize(
    ("n", "frames", "bins", "time_width", "freq_width", "stripes"),
    [
        (-1, 10, 10, 5, 5, 2),
        (1, 0, 10, 5, 5, 2),
        (1, 10, 0, 5, 5, 2),
        (1, 10, 10, 0, 5, 2),
        (1, 10, 10, 5, 0, 2),
        (1, 10, 10, 5, 5, -1),
    ],
)
def test_bad_stripe_arguments(
    n: int, frames: int, bins: int, time_width: int, freq_width: int, stripes: int
) -> None:
    with pytest.raises(ValueError, match="got"):
        draw_stripes(n, frames, bins, time_width=time_width, freq_width=freq_width, stripes=stripes)


def test_apply_matches_slicing() -> None:
    x = torch.rand(6, 2, 50, 40, generator=generator()) + 1
    stripes = draw_stripes(6, 50, 40, time_width=20, freq_width=10, generator=generator())
    expected = x.clone()
    for i, sample in enumerate(stripes.tolist()):
        for axis, start, stop in sample:
            if axis == 0:
                expected[i, :, start:stop] = 0
            else:
                expected[i, :, :, start:stop] = 0
    before = x.clone()
    assert torch.equal(apply_stripes(x, stripes), expected)
    assert torch.equal(x, before)


def test_apply_on_expanded_input() -> None:
    x = torch.rand(1, 1, 20, 16)
    stripes = draw_stripes(4, 20, 16, generator=generator())
    expected = apply_stripes(x.repeat(4, 1, 1, 1), stripes)
    assert torch.equal(apply_stripes(x.expand(4, -1, -1, -1), stripes), expected)


def test_apply_writes_zero_over_nan() -> None:
    x = torch.full((1, 1, 4, 4), math.nan, requires_grad=True)
    y = apply_stripes(x, torch.tensor([[[0, 0, 4]]]))
    assert torch.equal(y, torch.zeros(1, 1, 4, 4))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(1, 1, 4, 4))


def test_apply_gradient() -> None:
    x = torch.rand(2, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    stripes = torch.tensor([[[0, 1, 3], [1, 0, 2]], [[0, 0, 0], [1, 4, 5]]])
    assert torch.autograd.gradcheck(lambda t: apply_stripes(t, stripes), x)


def test_apply_errors() -> None:
    stripes = torch.zeros(2, 1, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="N, C, T, F"):
        apply_stripes(torch.zeros(2, 4, 4), stripes)
    with pytest.raises(ValueError, match=r"\(3, S, 3\)"):
        apply_stripes(torch.zeros(3, 1, 4, 4), stripes)
    with pytest.raises(TypeError, match="integers"):
        apply_stripes(torch.zeros(2, 1, 4, 4), stripes.float())


def test_mixup_mixes_inputs_and_targets_alike() -> None:
    n = 8
    targets = torch.eye(n)
    logmel = torch.randn(n, 1, 5, 4, generator=generator())
    mixed, mixed_targets = mixup(logmel, targets, 0.2, generator(1))
    assert mixed.shape == logmel.shape
    # Row i of the mixed one-hot targets holds the weights that made mixed[i].
    expected = torch.einsum("ij,jctf->ictf", mixed_targets, logmel)
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(n))
    torch.testing.assert_close(mixed_targets.sum(0), torch.ones(n))  # a permutation
    weights = mixed_targets.diagonal()[mixed_targets.diagonal() < 1]
    assert (weights == weights[0]).all()  # one lambda for the batch


def test_mixup_reproducible() -> None:
    logmel, targets = torch.randn(4, 1, 3, 2), torch.eye(4)
    first = mixup(logmel, targets, 0.2, generator(7))
    torch.manual_seed(7)
    for a, b in zip(first, mixup(logmel, targets, 0.2), strict=True):
        assert torch.equal(a, b)


def test_mixup_lambda_is_beta() -> None:
    g, alpha, n = generator(), 0.2, 4000
    x, targets = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.eye(2)
    draws: list[torch.Tensor] = []
    while len(draws) < n:
        mixed, mixed_targets = mixup(x, targets, alpha, g)
        if mixed[0] + mixed[1] == 1 and mixed_targets[0, 1] > 0:  # the pair was swapped
            draws.append(mixed_targets[0, 0])
    lam = torch.stack(draws).double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.mean() - 0.5) < 5 * math.sqrt(variance / n)
    assert abs(lam.var() - variance) < 5 * 0.25 / math.sqrt(n)  # (lam - 1/2)^2 is at most 1/4


def test_mixup_errors() -> None:
    x = torch.zeros(2, 1, 3, 2)
    with pytest.raises(ValueError, match="alpha"):
        mixup(x, torch.eye(2), 0.0)
    with pytest.raises(ValueError, match="targets"):
        mixup(x, torch.eye(3), 0.2)
    with pytest.raises(TypeError, match="one-hot"):
        mixup(x, torch.eye(2).long(), 0.2)


def test_augmentation_stays_on_the_gpu(fake_gpu: FakeGpu) -> None:
    with fake_gpu() as gpu:
        stripes = draw_stripes(4, 32, 256, device=gpu.device)
        assert stripes.device == gpu.device
        assert apply_stripes(gpu.empty(4, 1, 32, 256), stripes).device == gpu.device
        mixed, targets = mixup(gpu.empty(4, 1, 32, 256), gpu.empty(4, 3), 0.2)
        assert mixed.device == targets.device == gpu.device
        assert mixed.dtype == targets.dtype == torch.float32
        for loss in (soft_cross_entropy, focal_loss):
            assert loss(gpu.empty(4, 3), targets).device == gpu.device
    assert len(gpu.seen) == 2 and not gpu.waits()  # stripes and permutation


@pytest.mark.parametrize(
    ("masks", "error"),
    [((0, 32, 2), ValueError), ((128, 0, 2), ValueError), ((128, 32, -1), ValueError),
     ((128.0, 32, 2), TypeError), ((128, "32", 2), TypeError), ((128, 32, True), TypeError)],
)  # fmt: skip
def test_bounds_that_mean_nothing(masks: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"(time_width|freq_width|stripes) must be"):
        SpecAugment(*masks)
