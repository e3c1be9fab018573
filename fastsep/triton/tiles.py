"""Tiles: which ones a kernel can be compiled with, and the launch of a kernel with one of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fastsep.triton.shared import Size


class Tile(NamedTuple):
    """channels by columns of a program's tile, depth: channels a step of the matrix product.

    warps: of 32 threads; see `options`.
    """

    channels: int
    columns: int
    depth: int
    warps: int
    stages: int

    def options(self, warp_size: int = 32) -> dict[str, int]:
        """For Triton, which counts warps of the GPU's own size: 64 threads on AMD's."""
        return {"num_warps": max(self.warps * 32 // warp_size, 1), "num_stages": self.stages}


# What is searched; the first is used where nothing was measured, and compiles next to without
# spills for all layers of the network (benchmarks/triton_resources.py). "lone": one input channel.
CANDIDATES: dict[tuple[str, str], list[Tile]] = {
    ("forward", "lone"): [
        Tile(16, 128, 1, 4, 1),
        Tile(32, 64, 1, 4, 1),
        Tile(64, 64, 1, 4, 1),
        Tile(8, 256, 1, 4, 1),
    ],
    ("forward", "ieee"): [
        Tile(32, 256, 16, 8, 1),
        Tile(32, 256, 16, 8, 3),
        Tile(32, 128, 16, 4, 3),
        Tile(64, 128, 16, 8, 3),
        Tile(32, 64, 16, 2, 3),
        Tile(32, 64, 16, 4, 3),
    ],
    ("forward", "tf32"): [
        Tile(32, 256, 32, 8, 1),
        Tile(32, 256, 32, 8, 3),
        Tile(32, 128, 32, 4, 3),
        Tile(32, 64, 32, 2, 3),
        Tile(64, 64, 32, 8, 3),
    ],
    ("forward", "half"): [
        Tile(32, 256, 64, 8, 1),
        Tile(32, 256, 64, 16, 1),
        Tile(64, 128, 64, 8, 3),
        Tile(32, 128, 64, 4, 1),
        Tile(64, 64, 64, 8, 3),
    ],
    ("forward", "float64"): [Tile(8, 32, 4, 4, 1)],
    ("sums", "lone"): [Tile(8, 128, 1, 4, 1), Tile(4, 256, 1, 4, 1), Tile(16, 64, 1, 4, 1)],
    ("sums", "ieee"): [Tile(16, 128, 16, 8, 1), Tile(16, 128, 16, 8, 3), Tile(16, 64, 16, 4, 3)],
    ("sums", "tf32"): [Tile(16, 128, 32, 8, 1), Tile(16, 128, 32, 8, 3), Tile(16, 64, 32, 4, 3)],
    ("sums", "half"): [Tile(16, 128, 32, 8, 1), Tile(16, 128, 64, 8, 3), Tile(16, 64, 64, 4, 3)],
    ("sums", "float64"): [Tile(8, 32, 4, 4, 1)],
    ("input_gradient", "lone"): [Tile(1, 128, 8, 4, 1), Tile(1, 256, 8, 8, 1)],
    ("input_gradient", "ieee"): [
        Tile(64, 64, 16, 8, 1),
        Tile(64, 32, 16, 4, 1),
        Tile(128, 64, 16, 8, 1),
    ],
    ("input_gradient", "tf32"): [
        Tile(64, 64, 16, 8, 1),
        Tile(128, 64, 16, 8, 1),
        Tile(128, 32, 16, 4, 1),
    ],
    ("input_gradient", "half"): [
        Tile(64, 64, 16, 8, 1),
        Tile(128, 64, 16, 8, 1),
        Tile(128, 64, 32, 8, 1),
    ],
    ("input_gradient", "float64"): [Tile(16, 32, 4, 4, 1)],
    ("pointwise_gradient", "ieee"): [
        Tile(64, 32, 64, 4, 1),
        Tile(128, 32, 64, 8, 1),
        Tile(64, 32, 128, 8, 1),
    ],
    ("pointwise_gradient", "tf32"): [
        Tile(64, 32, 32, 8, 1),
        Tile(128, 32, 64, 8, 1),
        Tile(64, 32, 128, 8, 1),
    ],
    ("pointwise_gradient", "half"): [
        Tile(64, 32, 64, 4, 1),
        Tile(128, 32, 64, 8, 1),
        Tile(64, 32, 128, 8, 1),
    ],
    ("pointwise_gradient", "float64"): [Tile(16, 16, 16, 4, 1)],
}


def candidates_for(kind: str, size: Size, arithmetic: str) -> list[Tile]:
    lone = size.channels_in == 1 and arithmetic != "float64"
    return CANDIDATES[kind, "lone" if lone else arithmetic]


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments, and how many programs of which tile run it."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    tile: Tile

    def run(self) -> None:
        if self.programs > 0:
            options = self.tile.options(64 if torch.version.hip else 32)
            self.kernel[(self.programs,)](*self.arguments, **options)
