"""`torch.export` programs: graphs of PyTorch's own operators, which need no code of ours to run."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asc.model import Cnn6Sep
from asc.task import N_MELS
from fastsep.eager import EagerBlock, to_eager

METADATA = "metadata.json"  # what torch.export.load's extra_files calls the description
MIN_FRAMES = 32  # below, the last map has one row, which the exporter takes for another program


def content(model: Cnn6Sep, description: Mapping[str, Any]) -> bytes:
    """A file for `torch.export.load`: log-mels (N, 1, T, 256) -> logits, of any N and T >= 32.

    Args:
        model: folded.
        description: plain values for the metadata.
    """
    eager = to_eager(model)
    for block in [module for module in eager.modules() if isinstance(module, EagerBlock)]:
        setattr(block, "pool", _pool(block))  # noqa: B010  (another class than its pool has)
    clips, frames = torch.export.Dim("clips"), torch.export.Dim("frames", min=MIN_FRAMES)
    example = torch.zeros(2, 1, MIN_FRAMES + 1, N_MELS)  # which the file keeps
    exported = torch.export.export(
        eager, (example,), dynamic_shapes={"logmel": {0: clips, 2: frames}}
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer, extra_files={METADATA: json.dumps(description)})
    return buffer.getvalue()


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """The program of a file."""
    with warnings.catch_warnings(action="ignore"):  # of PyTorch about its own buffers
        return torch.export.load(path).module()


def _pool(block: EagerBlock) -> nn.Conv2d:
    """Its pooling as a convolution: AvgPool2d makes a program good for odd or even T, not both."""
    size, channels = block.pool.kernel_size, block.conv.time.out_channels
    mean = nn.Conv2d(channels, channels, size, stride=size, groups=channels, bias=False)
    nn.init.constant_(mean.weight, 1 / mean.weight[0].numel())
    return mean.requires_grad_(False).eval()
