"""What a network costs: parameters, bytes, arithmetic and memory, counted from the network itself.

A MAC is one multiply-accumulate of a convolution's or linear layer's weight with one position of a
map, as PyTorch's FlopCounterMode counts (which calls it two operations); biases, ReLU, pooling and
BN-mel are left out. `fastsep` itself does with fewer: it merges the two taps at the centre.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asc.model import Cnn6Sep
from asc.task import CLIP_SAMPLES, FRAMES, HOP, N_MELS, SAMPLE_RATE

SECOND_FRAMES = 1 + SAMPLE_RATE // HOP  # of a clip of 1 s, which the task has had since 2022


@dataclass(frozen=True)
class LayerRow:
    """One line of `parameter_table`; shape is the output's (C, T, F), or what there is of it.

    test_time, training_time: parameters; macs: of one clip; values: how many numbers the layer
    reads and writes for one clip, a block being one layer as it is one pass in `fastsep`.
    """

    layer: str
    shape: tuple[int, ...]
    test_time: int
    training_time: int
    macs: int
    values: int


@dataclass(frozen=True)
class Size:
    """A folded network in float16: parameters, how many of them are not zero, and bytes."""

    parameters: int
    nonzero: int
    num_bytes: int


@dataclass(frozen=True)
class Limit:
    """A limit of the challenge's editions, and what the network has of `what`, in `unit`."""

    editions: str
    what: str
    unit: str
    value: int
    most: int

    @property
    def passed(self) -> bool:
        """Whether the network keeps to it."""
        return self.value <= self.most


def size(model: Cnn6Sep) -> Size:
    """The size that the challenge limits to 128 KB: of the folded network, stored in float16."""
    halved = [parameter.half() for parameter in model.folded().parameters()]
    return Size(
        parameters=sum(parameter.numel() for parameter in halved),
        nonzero=sum(int(parameter.count_nonzero()) for parameter in halved),
        num_bytes=sum(parameter.nbytes for parameter in halved),
    )


def limits(model: Cnn6Sep) -> tuple[Limit, ...]:
    """The limits of DCASE's Task 1 on a network stored in float16.

    Of 2021: 128 KB, which was said to be 32 768 numbers of float32, zeros not counted. Since 2022:
    128 kB, counting all, and 30 million MACs for a clip of 1 s; the edition of 2022 wanted 8-bit
    integers besides.
    """
    counted = size(model)
    per_number = counted.num_bytes // counted.parameters
    macs = total_macs(parameter_table(model, SECOND_FRAMES))
    return (
        Limit("2021", "parameters not zero", "B", counted.nonzero * per_number, 128 * 1024),
        Limit("2022-2025", "parameters", "B", counted.num_bytes, 128_000),
        Limit("2022-2025", "clip of 1 s", "MAC", macs, 30_000_000),
    )


def total_macs(rows: Sequence[LayerRow]) -> int:
    """MACs of one clip."""
    return sum(row.macs for row in rows)


def macs_per_second(rows: Sequence[LayerRow]) -> float:
    """MACs for a second of audio, of the rows of a 10 s clip."""
    return total_macs(rows) * SAMPLE_RATE / CLIP_SAMPLES


def peak_memory(rows: Sequence[LayerRow], dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the largest input and output of a layer together, for one clip.

    What an implementation needs that computes layer by layer and frees each map after its use.
    """
    return max(row.values for row in rows) * dtype.itemsize


def parameter_table(model: Cnn6Sep, num_frames: int = FRAMES) -> list[LayerRow]:
    """Layers, their output shapes, parameters, MACs and activations.

    Test time counts the folded network's parameters; training time those of the trainable one with
    its running statistics. A folded network's training-time counts are those of a new `Cnn6Sep`.

    Args:
        model: trained or folded; left as it is.
        num_frames: T of the input whose way through the network gives the shapes.
    """
    folded = model.folded()
    trained = Cnn6Sep(len(model.classes)) if model.is_folded else model

    def rows() -> Iterator[LayerRow]:
        x = folded.fc1.weight.new_zeros(1, 1, num_frames, N_MELS)
        yield _row("BN-mel", x, x, [folded.bn0], [trained.bn0])
        with torch.no_grad():
            for i, (block, twin) in enumerate(zip(folded.blocks, trained.blocks, strict=True), 1):
                y = block(x)
                yield _row(f"block {i}, {x.shape[1]} -> {y.shape[1]}", x, y, [block], [twin])
                x = y
        pooled = x[:, :, 0, 0]
        yield _row("global pooling", x, pooled, [], [])
        hidden, classes = folded.fc2.in_features, folded.fc2.out_features
        mlp = f"MLP {pooled.shape[1]} -> {hidden} -> {classes}"
        yield _row(mlp, pooled, pooled[:, :1].expand(1, classes), [folded.fc1, folded.fc2],
                   [trained.fc1, trained.fc2])  # fmt: skip

    return list(rows())


def summary(model: Cnn6Sep) -> dict[str, Any]:
    """All of it as plain numbers, for JSON; size in bytes, memory in bytes by dtype."""
    rows = parameter_table(model)
    return {
        "layers": [asdict(row) for row in rows],
        "size": asdict(size(model)),
        "macs": {"clip": total_macs(rows), "second": macs_per_second(rows)},
        "peak_activation_memory": {
            str(dtype).removeprefix("torch."): peak_memory(rows, dtype)
            for dtype in (torch.float32, torch.float16)
        },
        "limits": [asdict(limit) | {"passed": limit.passed} for limit in limits(model)],
    }


def _row(
    layer: str,
    x: Tensor,
    y: Tensor,
    test_time: list[nn.Module],
    training_time: list[nn.Module],
) -> LayerRow:
    """Of a layer x -> y. Convolutions keep T and F, so each weight meets each of x's positions."""
    weights = (p for module in test_time for p in module.parameters() if p.ndim > 1)
    macs = math.prod(x.shape[2:]) * sum(weight.numel() for weight in weights)
    counts = _count(test_time), _count(training_time)
    return LayerRow(layer, tuple(y.shape[1:]), *counts, macs, x.numel() + y.numel())


def _count(modules: list[nn.Module]) -> int:
    """Values in the modules' states, num_batches_tracked (no number the network uses) left out."""
    return sum(
        tensor.numel()
        for module in modules
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
