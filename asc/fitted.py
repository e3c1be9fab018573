"""The clips that a network's temperature was fitted on, which nobody should score it on."""

import hashlib
import heapq
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SAMPLED = 128  # names of clips kept: 1 kB


@dataclass(frozen=True)
class FittedOn:
    """The clips that a temperature was fitted on, known again by their names.

    Of the names' hashes the 128 smallest are kept: all of a small set, of a large one a sample
    which tells sets that share a twentieth of their clips with a probability of 99.8 %.

    Args:
        split: the data set's.
        count: how many clips.
        hashes: ascending, of 64 bits.
    """

    split: str
    count: int
    hashes: tuple[int, ...]

    @classmethod
    def of(cls, split: str, names: Sequence[str]) -> "FittedOn":
        return cls(split, len(names), tuple(heapq.nsmallest(_SAMPLED, _hashes(names))))

    def shares(self, names: Iterable[str]) -> bool:
        """Whether one of the names is among those kept."""
        return not _hashes(names).isdisjoint(self.hashes)


def _hashes(names: Iterable[str]) -> set[int]:
    return {int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) for name in names}
