"""`--layers reference`: the network in PyTorch's own layers, with its own weights."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor
from torch.func import functional_call

from asc.model import Cnn6Sep
from fastsep.eager import to_eager

Forward: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


def in_torch_layers(model: Cnn6Sep) -> Forward:
    """The model's forward in PyTorch's own layers, on the model's own parameters and buffers.

    So optimisers and checkpoints see the one model, whatever computes it.
    """
    eager = to_eager(model)  # its weights are as many, in the same order, in nn.Conv2d's shapes
    shapes = {name: weight.shape for name, weight in eager.named_parameters()}

    def forward(logmel: Tensor, stripes: Tensor | None) -> Tensor:
        eager.train(model.training)
        weights = {
            name: weight.reshape(shape)
            for (name, shape), weight in zip(shapes.items(), model.parameters(), strict=True)
        }
        return functional_call(eager, weights | dict(model.named_buffers()), (logmel, stripes))

    return forward
