import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import CLIPS, network
from torch import Tensor

from asc import prediction, scoring
from asc.data import Clip, ClipList, LogMelDataset, unlabelled
from asc.errors import UserError
from asc.journal import Journal
from asc.metrics import score
from asc.model import Cnn6Sep
from asc.prediction import clip_logits, probabilities
from asc.processes import Place
from asc.scoring import evaluation_journal, predict, score_clips


@pytest.fixture(scope="module")
def model() -> Cnn6Sep:
    return network()


def test_predictions_by_name(model: Cnn6Sep) -> None:
    for tta in (0, 3):
        p = probabilities(model, CLIPS, tta=tta, seed=2)
        logits = clip_logits(model, CLIPS)
        found = predict(model, CLIPS, tta=tta, seed=2)
        for row, outputs, clip in zip(p, logits, found, strict=True):
            assert clip.probabilities == dict(zip(model.classes, row.tolist(), strict=True))
            assert clip.label == model.classes[int(row.argmax())]
            assert clip.logits == outputs.tolist()


def test_scores_without_and_with_masks(model: Cnn6Sep) -> None:
    clips = ClipList(model.classes, tuple(Clip(Path("x"), label, "a") for _, label in CLIPS))
    found = score_clips(model, CLIPS, clips, tta=3, seed=1)
    scores = found.scores
    assert found.masks == [3] * len(CLIPS)
    labels = [label for _, label in CLIPS]
    for masks in (0, 3):
        p = probabilities(model, CLIPS, tta=masks, seed=1)
        assert scores[masks] == score(p, labels, model.classes, ["a"] * len(CLIPS))
        assert torch.equal(found.probabilities[masks], p)
    plain = score_clips(model, CLIPS, clips)
    assert plain.scores == {0: scores[0]} and plain.masks == [0] * len(CLIPS)
    for each in (found, plain):
        assert torch.equal(each.logits, clip_logits(model, CLIPS))


def test_no_clips(model: Cnn6Sep) -> None:
    for devices in (1, 2):
        assert predict(model, [], tta=2, devices=devices) == []


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two clips a batch, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(prediction, "batch_size", lambda frames, limit: 2)
    yield
    torch.set_num_threads(before)


class Bar:
    """Stands for the progress bar."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.totals: list[tuple[int, int]] = []
        self.done: list[int] = []
        monkeypatch.setattr(scoring, "counted", self.counted)

    def counted(
        self, description: str, total: int, *, completed: int, unit: str
    ) -> AbstractContextManager[Callable[[int], None]]:
        self.totals.append((total, completed))
        return nullcontext(self.done.append)


@pytest.mark.usefixtures("pairs")
def test_processes_find_what_one_finds(model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, with the masks of their places in the list, and one bar is filled."""
    bar = Bar(monkeypatch)
    one = predict(model, CLIPS, tta=3, seed=2)
    assert bar.totals == [(5, 0)] and bar.done == [2, 2, 1]
    two = predict(model, CLIPS, tta=3, seed=2, devices=2)
    assert two == one and predict(model, CLIPS[3:], tta=3, seed=2)[0] != one[3]
    assert bar.totals == [(5, 0), (5, 0), (2, 0)] and sum(bar.done) == 12


@pytest.mark.usefixtures("pairs")
def test_batches_are_those_of_one_process(model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches are shared."""
    seen: list[tuple[Any, ...]] = []

    def run(work: Any, arguments: list[tuple[Any, ...]], **options: Any) -> None:
        seen.extend(arguments)
        raise UserError("seen")

    monkeypatch.setattr(scoring, "run", run)
    with pytest.raises(UserError, match="seen"):
        predict(model, CLIPS, tta=3, devices=2)
    assert [each[2] for each in seen] == [[range(2)], [range(2, 4), range(4, 5)]]
    seen.clear()
    with pytest.raises(UserError, match="seen"):
        predict(model, CLIPS[:3], devices=9)  # no more than there are batches
    assert [each[2] for each in seen] == [[range(2)], [range(2, 3)]]


@pytest.mark.usefixtures("pairs")
class TestInterruption:
    """What was computed before is taken over, and nothing else."""

    @pytest.fixture
    def files(self, tmp_path: Path, wav: Callable[..., Path]) -> ClipList:
        return unlabelled([wav(tmp_path / f"{i}.wav", 300 * i) for i in range(5)])

    @pytest.mark.parametrize("devices", [1, 2])
    @pytest.mark.parametrize("tta", [0, 2])
    def test_goes_on(
        self,
        model: Cnn6Sep,
        files: ClipList,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        tta: int,
        devices: int,
    ) -> None:
        logmels = LogMelDataset(files)
        expected = predict(model, logmels, tta=tta)
        journal = evaluation_journal(tmp_path / "kept", model, files, tta)
        assert journal is not None
        asked: list[int] = []

        class Interrupted:
            names = logmels.names
            last = 3

            def __len__(self) -> int:
                return len(logmels)

            def __getitem__(self, index: int) -> tuple[Tensor, int]:
                if index == self.last:
                    raise KeyboardInterrupt
                asked.append(index)
                return logmels[index]

        items = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            predict(model, items, tta=tta, journal=journal)
        assert journal.read()[1].tolist() == [True, True, False, False, False]
        bar = Bar(monkeypatch)
        again = evaluation_journal(tmp_path / "kept", model, files, tta)
        if devices == 1:
            asked.clear()
            items.last = -1
            assert predict(model, items, tta=tta, journal=again) == expected
            assert asked == [0, 2, 3, 4]  # 0: how long the clips are
            assert bar.done == [2, 1]
        else:
            assert predict(model, logmels, tta=tta, journal=again, devices=2) == expected
            assert sum(bar.done) == 3
        assert bar.totals == [(5, 2)]
        with journal:
            pass
        assert not list((tmp_path / "kept").iterdir())

    def test_other_weights_clips_and_settings(
        self, model: Cnn6Sep, files: ClipList, tmp_path: Path
    ) -> None:
        def journal(*settings: object) -> Journal:
            found = evaluation_journal(tmp_path, model, files, *settings)
            assert found is not None
            return found

        first = journal(3, "float32")
        first.write(0, np.ones((5, 9)))
        assert journal(3, "float32").read()[1].all()
        assert not journal(4, "float32").read()[1].any()
        assert not journal(3, "bf16").read()[1].any()
        os.utime(files[1].path, (1, 1))
        assert journal(3, "float32").read()[1].tolist() == [True, False, True, True, True]
        bias = model.fc2.bias[0].item()
        with torch.no_grad():
            before = journal(3)
            before.write(0, np.ones((5, 9)))
            model.fc2.bias[0] += 1
            assert not journal(3).read()[1].any()
            model.fc2.bias[0] = bias
        assert journal(3).read()[1].all()

    def test_what_nobody_goes_on_with_is_forgotten(
        self, model: Cnn6Sep, files: ClipList, tmp_path: Path
    ) -> None:
        for setting, age in (("old", 31), ("new", 29)):
            journal = evaluation_journal(tmp_path, model, files, setting)
            assert journal is not None
            journal.write(0, np.ones((5, 9)))
            os.utime(journal.path, (time.time() - 86_400 * age,) * 2)
        evaluation_journal(tmp_path, model, files)
        assert [path for path in tmp_path.glob("*.part")] == [journal.path]

    def test_where_nothing_can_be_kept(
        self,
        model: Cnn6Sep,
        files: ClipList,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is said, and the evaluation goes on."""
        (tmp_path / "file").touch()
        assert evaluation_journal(tmp_path / "file" / "x", model, files) is None
        assert "will begin anew" in caplog.text
        caplog.clear()
        journal = evaluation_journal(tmp_path / "full", model, files)

        def write(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Journal, "write", write)
        logmels = LogMelDataset(files)
        assert predict(model, logmels, journal=journal) == predict(model, logmels)
        assert "No space left on device" in caplog.text


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


def test_each_process_has_a_gpu_of_its_own(model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def computing(model: Any, device: Any, precision: Any) -> Any:
        asked.append(device)
        raise UserError("asked")

    monkeypatch.setattr(scoring, "computing", computing)
    for place in (Place(), Place(0, 2, 0, 2), Place(1, 2, 1, 2)):
        with pytest.raises(UserError, match="asked"):
            scoring._part(
                place, print, model, CLIPS, [range(2)], 0, 0, "shared", "cuda", "float32", None
            )
    assert asked == ["cuda", "cuda:0", "cuda:1"]
