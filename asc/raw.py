"""Samples without a header, and what has to be said of them instead."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

SampleFormat: TypeAlias = Literal["u8", "s16le", "s24le", "s32le", "f32le", "f64le"]

MOST_CHANNELS = 1024
MOST_RATE = 1_000_000


@dataclass(frozen=True)
class RawFormat:
    """What raw samples are. rate: in Hz."""

    rate: int
    channels: int
    kind: SampleFormat

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= MOST_RATE or not 1 <= self.channels <= MOST_CHANNELS:
            raise ValueError(
                f"rate must be from 1 to {MOST_RATE} and channels from 1 to {MOST_CHANNELS}, got "
                f"{self.rate} and {self.channels}"
            )
