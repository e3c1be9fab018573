"""How loud recordings are, and whether a network was trained on recordings that loud.

A gain is applied to samples where there are samples, and to log-mels where there are only these.
"""

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from asc.errors import UserError
from asc.prediction import LogMelItems, item_names
from asc.task import FLOOR

Gain: TypeAlias = float | Literal["auto"]

FAR = 10.0  # dB; networks lose accuracy from there on
_ALMOST = 1e-3  # dB: what rounding leaves above the floor


def level(logmel: Tensor) -> float:
    """The mean of a log-mel in dB, over all that lies above the front end's floor; NaN: nothing.

    What is at the floor, digital silence and bands that a recorder cuts off, says nothing about
    how loud the rest is, and no gain moves it.
    """
    below = int((logmel <= FLOOR + _ALMOST).count_nonzero())
    above = logmel.numel() - below
    total = logmel.sum(dtype=torch.float64).item() - FLOOR * below  # faster than to pick them out
    return total / above if above else math.nan


def gained(logmel: Tensor, gain: float) -> Tensor:
    """The log-mel of a recording that is louder by so many dB.

    The front end's floor stays where it is: values that would fall below end there, and values at
    it stay there, as no gain lifts digital silence. So the result is the log-mel of the scaled
    samples, but for values that lie below the floor before and would lie above it after.
    """
    if gain == 0:
        return logmel
    return torch.where(logmel > FLOOR + _ALMOST, (logmel + gain).clamp(min=FLOOR), FLOOR)


def gain_of(logmel: Tensor, gain: Gain, expected: float | None) -> float:
    """A gain in dB; "auto" is the one that brings a log-mel's level to the one expected."""
    if gain != "auto":
        return gain
    assert expected is not None, "check_gain was not asked"
    found = level(logmel)
    return 0.0 if math.isnan(found) else expected - found


def check_gain(gain: Gain, expected: float | None) -> None:
    """UserError for "auto" if it is not known what level the network expects."""
    if gain == "auto" and expected is None:
        raise UserError(
            "--gain auto: these weights do not tell the level of the recordings they were trained "
            "on (files folded by older versions do not keep it); choose a number of dB, or take "
            "the training checkpoint"
        )


def far_off(levels: Iterable[tuple[str, float]], expected: float | None) -> str | None:
    """One line on the recordings that a network may be wrong about for their level; None: none.

    Args:
        levels: of each recording its name and its log-mel's level, as the network sees it; NaN
            where that is not known.
        expected: level of the recordings that the network was trained on; None: not known.
    """
    named = [(name, found) for name, found in levels if not math.isnan(found)]
    if expected is None:
        return None
    far = [(name, found) for name, found in named if abs(found - expected) > FAR]
    if not far:
        return None
    name, found = max(far, key=lambda each: abs(each[1] - expected))
    which = f"{len(far)} of {len(named)} recordings are" if len(named) > 1 else "the recording is"
    return (
        f"{which} more than {FAR:.0f} dB away from the mean log-mel of the network's training set, "
        f"{expected:.1f} dB, which may make it wrong ({name}: {found:.1f} dB); --gain auto matches "
        "it, --gain DB adds to it"
    )


class LevelledItems:
    """The items of a `LogMelItems` under a gain; `levels` of those asked for, after the gain.

    Processes that are given it write to the same `levels`, (N,) float64, as PyTorch shares the
    memory of tensors that it sends; NaN where an item has not been asked for, or is silent.

    Args:
        items: the log-mels.
        gain, expected: as of `gain_of`.
    """

    def __init__(self, items: LogMelItems, gain: Gain, expected: float | None) -> None:
        check_gain(gain, expected)
        self.items, self.gain, self.expected = items, gain, expected
        self.levels = torch.full((len(items),), torch.nan, dtype=torch.float64)

    @property
    def names(self) -> list[str] | None:
        """Those of the items, from which their TTA masks follow."""
        names = item_names(self.items)
        return None if names is None else list(names)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        logmel, label = self.items[index]
        logmel = gained(logmel, gain_of(logmel, self.gain, self.expected))
        self.levels[index] = level(logmel)
        return logmel, label
