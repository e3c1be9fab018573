"""Log-mels computed as they are asked for: the numbers of the data set, few of them held."""

import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asc.data import Clip, ClipList, LogMelDataset, LogMelStream, open_logmels, unlabelled
from asc.data import stream as stream_module
from asc.model import Cnn6Sep
from asc.prediction import probabilities

Refused = Callable[..., Any]


@pytest.fixture
def clips(tmp_path: Path, wav: Callable[..., Path]) -> ClipList:
    paths = [wav(tmp_path / f"{hertz}.wav", hertz) for hertz in (300, 700, 2000)]
    labels = 0, None, 1
    return ClipList(
        ("low", "high"),
        tuple(Clip(path, label, None) for path, label in zip(paths, labels, strict=True)),
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the clips that are computed, in no order; the log-mel is the name's number."""
    begun: list[str] = []

    def compute(front_end: object, path: Path, device: torch.device) -> Tensor:
        begun.append(path.stem)
        return torch.full((1, 2, 3), float(path.stem))

    monkeypatch.setattr(stream_module, "clip_logmel", compute)
    return begun


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[LogMelStream]:
    with open_logmels(unlabelled([tmp_path / f"{i}.wav" for i in range(1000)])) as items:
        assert isinstance(items, LogMelStream)
        yield items


def settle(begun: list[str], count: int) -> None:
    """Waits until so many clips have been begun, then as long again as nothing should happen."""
    until = time.monotonic() + 60
    while len(begun) < count and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.05)


def test_the_items_of_the_data_set(clips: ClipList) -> None:
    expected = LogMelDataset(clips)
    with open_logmels(clips) as items:
        assert isinstance(items, LogMelStream)
        assert items.names == expected.names
        assert len(items) == 3
        for _ in range(2):
            for index in (0, 1, 2, 0, -1):
                (logmel, label), (whole, whole_label) = items[index], expected[index]
                assert torch.equal(logmel, whole)
                assert label == whole_label
                logmel.zero_()  # the caller's own copy
        with pytest.raises(IndexError):
            items[3]


def test_no_clips() -> None:
    with open_logmels(unlabelled([])) as items:
        assert len(items) == 0


def test_gone_through_in_order_each_is_computed_once_and_few_ahead(
    counted: list[str], numbers: LogMelStream
) -> None:
    ahead = stream_module._AHEAD
    for index in range(len(numbers)):
        assert numbers[index][0][0, 0, 0] == index
        assert len(counted) <= index + 1 + ahead
        if index % 300 == 0:
            settle(counted, index + 1 + ahead)
            assert len(counted) == index + 1 + ahead  # they do not wait to be asked for
        assert len(numbers._begun) <= 1 + ahead
    assert numbers[999][0][0, 0, 0] == 999  # the last one asked for is still there
    assert sorted(counted, key=int) == [str(i) for i in range(1000)]


def test_in_any_order(counted: list[str], numbers: LogMelStream) -> None:
    for index in (500, 3, 999, 4, 0, 998):
        assert numbers[index][0][0, 0, 0] == index
        assert len(numbers._begun) <= 1 + stream_module._AHEAD
    settle(counted, 0)
    assert len(counted) <= 6 * (1 + stream_module._AHEAD)


def test_after_an_error_nothing_more_is_begun(counted: list[str], tmp_path: Path) -> None:
    clips = unlabelled([tmp_path / f"{i}.wav" for i in range(1000)])
    with pytest.raises(KeyError), open_logmels(clips) as items:
        items[0]
        raise KeyError
    begun = len(counted)
    settle(counted, 0)
    assert len(counted) == begun <= 1 + stream_module._AHEAD


def test_a_bad_clip_is_named_when_its_turn_comes(clips: ClipList, refused: Refused) -> None:
    clips[1].path.write_bytes(b"nothing")
    with open_logmels(clips) as items:
        items[0]
        for _ in range(2):
            with refused(clips[1].path, "cannot be read as audio"):
                items[1]
        assert torch.equal(items[2][0], LogMelDataset(unlabelled([clips[2].path]))[0][0])


def test_with_a_cache_it_is_the_data_set(clips: ClipList, tmp_path: Path) -> None:
    with open_logmels(clips, tmp_path / "cache") as items:
        assert isinstance(items, LogMelDataset)
    assert len(list((tmp_path / "cache").iterdir())) > 0


@pytest.mark.parametrize("tta", [0, 3])
def test_scores_do_not_depend_on_it(clips: ClipList, tta: int) -> None:
    torch.manual_seed(0)
    model = Cnn6Sep().eval()
    with open_logmels(clips) as items:
        actual = probabilities(model, items, tta=tta)
    assert torch.equal(actual, probabilities(model, LogMelDataset(clips), tta=tta))


def test_a_stream_can_be_sent_to_another_process(clips: ClipList) -> None:
    """Where it starts threads of its own."""
    with open_logmels(clips) as items:
        sent = pickle.loads(pickle.dumps(items))
    for (logmel, label), (expected, wanted) in zip(sent, LogMelDataset(clips), strict=True):
        assert torch.equal(logmel, expected) and label == wanted
