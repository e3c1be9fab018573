"""Where and how precisely to compute: what `--device` and `--precision` mean.

    float32   IEEE float32
    tf32      float32, but a GPU may round the inputs of its products to TF32 (10 bits of fraction)
    bf16      training: the network under autocast to bfloat16, its parameters in float32;
              inference: bfloat16 inputs of the 1x1 convolutions, where the machine has kernels

Log-mels, losses, softmax and scores are in float32 or better under each of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from asc.errors import UserError

Precision: TypeAlias = Literal["float32", "tf32", "bf16"]


def pick_device(
    name: Literal["auto", "cpu", "cuda"], precision: Precision = "float32"
) -> Literal["cpu", "cuda"]:
    """The device meant. UserError when there is no GPU to use, or none for the precision."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device 'cuda': PyTorch sees no CUDA device here; choose cpu")
    if available and name != "cpu":
        return "cuda"
    if precision == "tf32":
        raise UserError("precision 'tf32' is for GPUs; on a CPU choose float32 or bf16")
    return "cpu"


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; copies to a GPU go through pinned memory and are not waited for."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Inside, PyTorch's switch for float32 matrix products allows TF32 if `precision` is tf32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
