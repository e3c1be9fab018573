from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from noise import CLIPS, network
from torch import Tensor

from asc import scoring
from asc.data import Clip, ClipList, LogMelDataset, unlabelled
from asc.errors import UserError
from asc.metrics import score
from asc.model import Cnn6Sep
from asc.prediction import clip_logits, probabilities
from asc.processes import Place, shares
from asc.scoring import Evaluation, predict, score_clips


@pytest.fixture(scope="module")
def model() -> Cnn6Sep:
    return network()


def test_predictions_by_name(model: Cnn6Sep) -> None:
    for tta in (0, 3):
        p = probabilities(model, CLIPS, tta=tta, seed=2)
        logits = clip_logits(model, CLIPS)
        found = predict(model, CLIPS, tta=tta, seed=2)
        for row, outputs, prediction in zip(p, logits, found, strict=True):
            assert prediction.probabilities == dict(zip(model.classes, row.tolist(), strict=True))
            assert prediction.label == model.classes[int(row.argmax())]
            assert prediction.logits == outputs.tolist()


def test_scores_without_and_with_masks(model: Cnn6Sep) -> None:
    clips = ClipList(model.classes, tuple(Clip(Path("x"), label, "a") for _, label in CLIPS))
    found = score_clips(model, CLIPS, clips, tta=3, seed=1)
    scores = found.scores
    assert found.masks == [3] * len(CLIPS)
    labels = [label for _, label in CLIPS]
    for masks in (0, 3):
        p = probabilities(model, CLIPS, tta=masks, seed=1)
        assert scores[masks] == score(p, labels, model.classes, ["a"] * len(CLIPS))
    assert score_clips(model, CLIPS, clips) == Evaluation({0: scores[0]}, [0] * len(CLIPS))


def test_no_clips(model: Cnn6Sep) -> None:
    for devices in (1, 2):
        assert predict(model, [], tta=2, devices=devices) == []


def test_processes_find_what_one_finds(model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, with the masks of their places in the list, and one bar is filled."""
    totals: list[int] = []
    done: list[int] = []

    def counted(description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        totals.append(total)
        return nullcontext(done.append)

    monkeypatch.setattr(scoring, "counted", counted)
    one = predict(model, CLIPS, tta=3, seed=2)
    assert totals == [5 + 3 * 5] and sum(done) == 20
    two = predict(model, CLIPS, tta=3, seed=2, devices=2)
    assert two == one and predict(model, CLIPS[3:], tta=3, seed=2)[0] != one[3]
    assert totals == [20, 20, 8] and sum(done) == 48


def test_batches_are_those_of_one_process(model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches are shared; clips under masks, which go through one by one, are so evenly."""
    seen: list[tuple[Any, ...]] = []

    def run(work: Any, arguments: list[tuple[Any, ...]], **options: Any) -> None:
        seen.extend(arguments)
        raise UserError("seen")

    monkeypatch.setattr(scoring, "run", run)
    monkeypatch.setattr(scoring, "batch_size", lambda frames, limit: 4)
    with pytest.raises(UserError, match="seen"):
        predict(model, CLIPS, tta=3, devices=2)
    assert [each[2:4] for each in seen] == [(range(4), range(2)), (range(4, 5), range(2, 5))]
    seen.clear()
    with pytest.raises(UserError, match="seen"):
        predict(model, CLIPS[:3], devices=9)  # no more than there are clips
    assert [each[2] for each in seen] == list(shares(3, 3, 4))


def test_files_in_memory_and_in_a_cache(
    model: Cnn6Sep, tmp_path: Path, wav: Callable[..., Path]
) -> None:
    """Processes are given the one and open the other; names, of which masks are drawn, go along."""
    files = unlabelled([wav(tmp_path / f"{i}.wav", 300 * i) for i in range(7)])  # of 6 a batch
    one = predict(model, LogMelDataset(files), tta=2)
    for cache in (None, tmp_path / "cache"):
        assert predict(model, LogMelDataset(files, cache), tta=2, devices=2) == one


def test_the_first_clip_that_cannot_be_scored_is_named(model: Cnn6Sep) -> None:
    """Whichever process finds its own first."""
    bad = torch.full((1, 32, 256), torch.nan), 0
    clips: list[tuple[Tensor, int]] = [*CLIPS[:3], bad, *CLIPS[:3], bad]
    for devices in (1, 2):
        for tta in (0, 2):
            with pytest.raises(UserError, match=r"^clip 3, counted from 0: .*not finite"):
                predict(model, clips, tta=tta, devices=devices)


@pytest.mark.parametrize("arguments", [{"tta": -1}, {"tta": 2, "seed": -1}])
def test_negative_arguments(model: Cnn6Sep, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        predict(model, CLIPS, devices=2, **arguments)


def test_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="train mode"):
        predict(Cnn6Sep(4), CLIPS, devices=2)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def computing(model: Any, device: Any, precision: Any) -> Any:
        asked.append(device)
        raise UserError("asked")

    monkeypatch.setattr(scoring, "computing", computing)
    for place in (Place(), Place(0, 2, 0, 2), Place(1, 2, 1, 2)):
        with pytest.raises(UserError, match="asked"):
            scoring._part(
                place, print, None, [], range(0), range(0), 0, 0, "shared", "cuda", "float32"
            )  # type: ignore[arg-type]
    assert asked == ["cuda", "cuda:0", "cuda:1"]
