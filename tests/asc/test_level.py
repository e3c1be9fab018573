"""Levels of recordings, and gains that are those of the samples."""

import math
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from noise import CLIPS, network

from asc.data import Clip, ClipList
from asc.features import LogMel
from asc.level import LevelledItems, check_gain, far_off, gain_of, gained, level
from asc.scoring import score_clips

Refused = Callable[..., AbstractContextManager[None]]

NOISE = 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [2**-5, 2**3])
def test_a_gain_is_that_of_the_samples(factor: float) -> None:
    """Of powers of two, by which every step up to the logarithm is scaled without rounding."""
    front_end, gain = LogMel(), 20 * math.log10(factor)
    logmel, scaled = front_end(NOISE), front_end(NOISE * factor)
    # A few roundings of numbers up to 128.
    torch.testing.assert_close(gained(logmel, gain), scaled, rtol=0, atol=4 * 128 * 2**-24)
    assert level(scaled) == pytest.approx(level(logmel) + gain, abs=1e-4)


def test_the_floor_stays_where_it_is() -> None:
    front_end = LogMel()
    halves = torch.cat([NOISE, torch.zeros(20_000)])
    quieter, scaled = gained(front_end(halves), 20 * math.log10(2**-16)), halves * 2**-16
    at_floor = (front_end(halves) == -100).sum()
    assert at_floor + 1000 < (quieter == -100).sum() < quieter.numel()
    torch.testing.assert_close(quieter, front_end(scaled), rtol=0, atol=4 * 128 * 2**-24)
    louder = gained(front_end(halves), 40.0)
    assert (louder == -100).sum() == (front_end(halves) == -100).sum() > 4000  # digital silence
    assert level(front_end(halves)) == pytest.approx(level(front_end(NOISE)), abs=1.0)
    assert math.isnan(level(front_end(torch.zeros(20_000))))


def test_automatic_gain() -> None:
    logmel = LogMel()(NOISE)
    for expected in (-20.0, 3.0):
        gain = gain_of(logmel, "auto", expected)
        assert level(gained(logmel, gain)) == pytest.approx(expected, abs=1e-4)
    assert gain_of(LogMel()(torch.zeros(20_000)), "auto", -50.0) == 0
    assert gain_of(logmel, 7.0, None) == 7


def test_automatic_gain_needs_a_level(refused: Refused) -> None:
    check_gain(3.0, None)
    check_gain("auto", -50.0)
    with refused("--gain auto", "do not tell"):
        check_gain("auto", None)


def test_recordings_far_off() -> None:
    levels = [("a.wav", -50.0), ("b.wav", -71.0), ("c.wav", math.nan), ("d.wav", -39.9)]
    line = far_off(levels, -50.0)
    assert line is not None and "\n" not in line
    for part in ("2 of 3 recordings", "-50.0 dB", "(b.wav: -71.0 dB)", "--gain auto"):
        assert part in line
    assert "the recording is" in str(far_off(levels[1:2], -50.0))
    assert far_off(levels, None) is None
    assert far_off([levels[0], levels[2], ("e", -60.0)], -50.0) is None  # 10 dB are not more


def test_items_under_a_gain() -> None:
    clips = ClipList(("a", "b", "c", "d"), tuple(Clip(Path("x"), y, None) for _, y in CLIPS))
    model = network()
    plain = LevelledItems(CLIPS, 0.0, None)
    assert plain.levels.isnan().all() and plain.names is None
    found = score_clips(model, plain, clips)
    assert found == score_clips(model, CLIPS, clips)
    assert plain.levels.tolist() == [level(x) for x, _ in CLIPS]

    louder = LevelledItems(CLIPS, 20.0, None)
    assert len(louder) == len(CLIPS) and louder[1][1] == CLIPS[1][1]
    torch.testing.assert_close(louder[1][0], CLIPS[1][0] + 20)
    again = LevelledItems([(x - 30, y) for x, y in CLIPS], 30.0, None)
    for (x, _), (y, _) in zip(again, CLIPS, strict=False):
        torch.testing.assert_close(x, y)


def test_processes_write_levels_to_the_same_place() -> None:
    items = LevelledItems(CLIPS, "auto", -20.0)
    sent = pickle.loads(ForkingPickler.dumps(items))  # as to a process that is started
    sent[3]
    assert items.levels[3].item() == pytest.approx(-20.0, abs=1e-4)
    assert items.levels.isnan().sum() == 4


class Named(list):  # type: ignore[type-arg]
    names = ("p", "q", "r", "s", "t")


def test_names_go_along() -> None:
    assert LevelledItems(Named(CLIPS), 0.0, None).names == ["p", "q", "r", "s", "t"]
