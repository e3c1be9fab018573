import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asc.calibration import (
    all_logits,
    clip_names,
    fit_temperature,
    mean_probabilities,
    quality,
    refuse_fitted_on,
)
from asc.checkpoint import load_model, save_folded
from asc.data.clips import Clip, ClipList
from asc.fitted import FittedOn
from asc.model import Cnn6Sep
from asc.prediction import probabilities

Refused = Callable[..., AbstractContextManager[None]]


def drawn(clips: int = 4000, masks: int = 1, temperature: float = 1.0) -> tuple[Tensor, list[int]]:
    """Logits `temperature` times too sure, and labels drawn with the right probabilities."""
    generator = torch.Generator().manual_seed(0)
    shape = (clips, masks, 5)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(2).mean(1), 1, generator=generator)[:, 0]
    return temperature * logits, labels.tolist()


@pytest.mark.parametrize("masks", [1, 8])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_the_labels_is_found(masks: int, temperature: float) -> None:
    found = fit_temperature(*drawn(masks=masks, temperature=temperature))
    # 4000 labels tell log T to about 1 / sqrt(4000): four times that.
    assert abs(math.log(found / temperature)) < 4 / math.sqrt(4000)


@pytest.mark.parametrize("masks", [1, 4])
def test_no_other_temperature_has_a_smaller_log_loss(masks: int) -> None:
    logits, labels = drawn(200, masks, 2.0)
    best = fit_temperature(logits, labels)

    def nll(temperature: float) -> float:
        return quality(mean_probabilities(logits, temperature), labels).nll

    for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert nll(best) < nll(factor * best)


def test_quality_by_hand() -> None:
    p = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    found = quality(p, [0, 1])
    assert found.nll == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    assert found.brier == pytest.approx((2 * 0.25**2 + 2 * 0.5**2) / 2)
    assert found.ece == pytest.approx((0.25 + 0.5) / 2)  # of a tie the first class is taken


def test_what_cannot_be_calibrated(refused: Refused) -> None:
    logits, _ = drawn(50)
    with refused("single class"):
        fit_temperature(logits, [3] * 50)
    right = logits.argmax(2)[:, 0].tolist()
    with refused("0.05 or less", "every clip is classified right"):
        fit_temperature(logits, right)
    wrong = logits.argmin(2)[:, 0].tolist()
    with refused("20 or more", "knows nothing"):
        fit_temperature(logits, wrong)


class Items:
    """Log-mels of 32 frames under names."""

    names = ("a.wav", "b.wav", "c.wav")

    def __init__(self, spoilt: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.logmels = 15 * torch.randn(3, 1, 32, 256, generator=generator) - 60
        if spoilt is not None:
            self.logmels[spoilt, 0, 3, 5] = math.nan

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.logmels[index], -1

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[i] for i in range(3))


@pytest.fixture(scope="module")
def model() -> Cnn6Sep:
    torch.manual_seed(0)
    return Cnn6Sep().folded()


@pytest.mark.parametrize("tta", [0, 3])
def test_what_is_fitted_is_what_is_evaluated(tta: int, model: Cnn6Sep) -> None:
    """The same masks, and a calibrated network's probabilities are those that were fitted."""
    logits = all_logits(model, Items(), tta=tta, seed=5)
    assert logits.shape == (3, max(1, tta), 10)
    for temperature in (1.0, 2.5):
        network = model.calibrated(temperature)
        expected = probabilities(network, Items(), tta=tta, seed=5)
        # float32 weights divided before the product or float64 logits after it
        assert (mean_probabilities(logits, temperature) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("tta", [0, 2])
def test_outputs_that_are_not_finite_name_the_clip(
    tta: int, model: Cnn6Sep, refused: Refused
) -> None:
    with refused("'b.wav'", "not finite"):
        all_logits(model, Items(spoilt=1), tta=tta)


def test_the_clips_travel_with_the_weights(
    model: Cnn6Sep, tmp_path: Path, refused: Refused
) -> None:
    def clips(root: Path, *names: str) -> ClipList:
        return ClipList((), tuple(Clip(root / "audio" / name, 0, None) for name in names))

    here, there = tmp_path / "here", tmp_path / "there"
    calibrated = model.calibrated(2)
    names = clip_names(clips(here, "a.wav", "b.wav"), here)
    assert names == ["audio/a.wav", "audio/b.wav"]
    calibrated.fitted_on = FittedOn.of("evaluate", names)
    path = tmp_path / "calibrated.pt"
    save_folded(calibrated, path)
    assert path.stat().st_size < 128 * 1024
    loaded = load_model(path)
    assert loaded.fitted_on == calibrated.fitted_on
    with refused(path, "2 clips", "'evaluate'", "--allow-calibration-clips"):
        refuse_fitted_on(loaded, path, clips(there, "b.wav", "c.wav"), there)
    refuse_fitted_on(loaded, path, clips(there, "c.wav"), there)
    refuse_fitted_on(model, path, clips(there, "b.wav"), there)

    for other in ({"split": "train"}, 3, {"split": "train", "count": 1, "hashes": 5}):
        content = torch.load(path, weights_only=True) | {"fitted_on": other}
        torch.save(content, tmp_path / "other.pt")
        with refused("other.pt", "'fitted_on'"):
            load_model(tmp_path / "other.pt")
