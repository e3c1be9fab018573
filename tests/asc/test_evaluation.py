import pytest
import torch
from torch import Tensor

from asc.errors import UserError
from asc.evaluation import (
    batch_size,
    clip_logits,
    draw_masks,
    evaluate,
    masked_logits,
)
from asc.model import Cnn6Sep, SpecAugment

COPY = 6 * 64 * 32 * 256 * 4  # what evaluate counts a copy of 32 frames to take, bytes
CLIPS = [
    (15 * torch.randn(1, 32, 256, generator=torch.Generator().manual_seed(seed)), seed % 2)
    for seed in range(5)
]


@pytest.fixture(scope="module")
def model() -> Cnn6Sep:
    torch.manual_seed(0)
    model = Cnn6Sep(4)
    model.specaugment = SpecAugment(20, 64, 2)
    with torch.no_grad():
        model.fc2.weight *= 20  # outputs of an untrained network hardly differ
        model(torch.stack([x for x, _ in CLIPS]))
    return model.folded()


def test_without_masks(model: Cnn6Sep) -> None:
    p = evaluate(model, CLIPS)
    assert p.dtype == torch.float64 and p.shape == (5, 4)
    with torch.no_grad():
        logits = model(torch.stack([x for x, _ in CLIPS])).double()
    torch.testing.assert_close(p, logits.softmax(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(clip_logits(model, CLIPS), logits, rtol=1e-5, atol=1e-5)


def test_tta_is_the_mean_of_the_softmax_outputs(model: Cnn6Sep) -> None:
    p = evaluate(model, CLIPS, tta=6, seed=3)
    for index, (x, _) in enumerate(CLIPS):
        masks = draw_masks(model.specaugment, 6, 32, 256, 3, index)
        outputs = [model(x[None], mask[None]).double().softmax(1)[0] for mask in masks]
        torch.testing.assert_close(p[index], torch.stack(outputs).mean(0), rtol=1e-5, atol=1e-7)
    assert (p - evaluate(model, CLIPS)).abs().max() > 1e-3  # the masks do something


def test_masks_depend_on_seed_and_index_alone(model: Cnn6Sep) -> None:
    spec = SpecAugment()
    masks = draw_masks(spec, 30, 431, 256, 1, 5)
    torch.manual_seed(99)
    assert torch.equal(masks, draw_masks(spec, 30, 431, 256, 1, 5))
    for seed, index in ((1, 6), (2, 5), (5, 1)):
        assert not torch.equal(masks, draw_masks(spec, 30, 431, 256, seed, index))
    # More masks begin with the same ones only by chance, but clips in other company do not change.
    alone = evaluate(model, CLIPS[:2], tta=4, seed=1)
    assert torch.equal(alone, evaluate(model, CLIPS, tta=4, seed=1)[:2])


def test_memory_limit_does_not_change_the_result(model: Cnn6Sep) -> None:
    expected = evaluate(model, CLIPS, tta=7, seed=1)
    for limit in (1, 3 * COPY, 7 * COPY):  # batches of 1, 3 and 7
        p = evaluate(model, CLIPS, tta=7, seed=1, max_batch_bytes=limit)
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)
    p = evaluate(model, CLIPS, max_batch_bytes=2 * COPY)  # 2 + 2 + 1 clips
    torch.testing.assert_close(p, evaluate(model, CLIPS), rtol=1e-5, atol=1e-7)


def test_batches_and_copies(model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked copies of a clip are one tensor of stride 0, in chunks under the limit."""
    assert [batch_size(32, limit) for limit in (1, COPY, 3 * COPY - 1, 3 * COPY)] == [1, 1, 2, 3]
    seen = []
    forward = Cnn6Sep.forward

    def spy(self: Cnn6Sep, logmel: Tensor, stripes: Tensor | None = None) -> Tensor:
        seen.append((logmel.shape[0], logmel.stride(0)))
        return forward(self, logmel, stripes)

    monkeypatch.setattr(Cnn6Sep, "forward", spy)
    masks = draw_masks(model.specaugment, 7, 32, 256, 0, 0)
    masked_logits(model, CLIPS[0][0][None], masks, max_batch_bytes=3 * COPY)
    assert [n for n, _ in seen] == [3, 3, 1]
    assert all(stride == 0 for n, stride in seen if n > 1)


def test_no_clips(model: Cnn6Sep) -> None:
    assert evaluate(model, []).shape == (0, 4)
    assert evaluate(model, [], tta=2).shape == (0, 4)


def test_train_mode_is_refused() -> None:
    for tta in (0, 2):
        with pytest.raises(ValueError, match="train mode"):
            evaluate(Cnn6Sep(4), CLIPS, tta=tta)


@pytest.mark.parametrize("arguments", [{"tta": -1}, {"tta": 2, "seed": -1}])
def test_negative_arguments(model: Cnn6Sep, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        evaluate(model, CLIPS, **arguments)


@pytest.mark.parametrize("tta", [0, 3])
def test_outputs_that_are_not_finite_are_an_error(model: Cnn6Sep, tta: int) -> None:
    clips = [*CLIPS[:3], (torch.full((1, 32, 256), torch.nan), 0)]
    with pytest.raises(UserError, match=r"clip 3.*not finite"):
        evaluate(model, clips, tta=tta)
