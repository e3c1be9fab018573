"""What a network costs: parameters and bytes, counted from the network itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asc.model import Cnn6Sep
from asc.task import FRAMES, N_MELS


@dataclass(frozen=True)
class LayerRow:
    """One line of `parameter_table`; shape is (C, T, F), or what there is of it."""

    layer: str
    shape: tuple[int, ...]
    test_time: int
    training_time: int


@dataclass(frozen=True)
class Size:
    """A folded network in float16: parameters, how many of them are not zero, and bytes."""

    parameters: int
    nonzero: int
    num_bytes: int


def size(model: Cnn6Sep) -> Size:
    """The size that the challenge limits to 128 KB: of the folded network, stored in float16."""
    halved = [parameter.half() for parameter in model.folded().parameters()]
    return Size(
        parameters=sum(parameter.numel() for parameter in halved),
        nonzero=sum(int(parameter.count_nonzero()) for parameter in halved),
        num_bytes=sum(parameter.nbytes for parameter in halved),
    )


def parameter_table(model: Cnn6Sep, num_frames: int = FRAMES) -> list[LayerRow]:
    """Layers, output shapes and parameter counts.

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
        yield _row("BN-mel", x, [folded.bn0], [trained.bn0])
        with torch.no_grad():
            for i, (block, twin) in enumerate(zip(folded.blocks, trained.blocks, strict=True), 1):
                channels = x.shape[1]
                x = block(x)
                yield _row(f"block {i}, {channels} -> {x.shape[1]}", x, [block], [twin])
        x = x[:, :, 0, 0]
        yield _row("global pooling", x, [], [])
        hidden, classes = folded.fc2.in_features, folded.fc2.out_features
        mlp = f"MLP {x.shape[1]} -> {hidden} -> {classes}"
        yield _row(mlp, x[:, :1].expand(1, classes), [folded.fc1, folded.fc2],
                   [trained.fc1, trained.fc2])  # fmt: skip

    return list(rows())


def _row(
    layer: str, output: Tensor, test_time: list[nn.Module], training_time: list[nn.Module]
) -> LayerRow:
    return LayerRow(layer, tuple(output.shape[1:]), _count(test_time), _count(training_time))


def _count(modules: list[nn.Module]) -> int:
    """Values in the modules' states, num_batches_tracked (no number the network uses) left out."""
    return sum(
        tensor.numel()
        for module in modules
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
