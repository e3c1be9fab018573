"""Where and how precisely to compute: what `--device` and `--precision` mean.

    float32   IEEE float32
    tf32      float32, but a GPU may round the inputs of its products to TF32 (10 bits of fraction)
    bf16      training: the network under autocast to bfloat16, its parameters in float32;
              inference: bfloat16 inputs of the 1x1 convolutions, where the machine has kernels

Log-mels, losses, softmax and scores are in float32 or better under each of them.

How masked copies are computed (`--tta-engine`), to the same bits:

    shared    a copy's own positions only, on a CPU; elsewhere as batched
    batched   each copy by itself

PyTorch is imported only where it is used: the command line takes its choices from here, and its
help should not have to wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from asc.errors import UserError

if TYPE_CHECKING:
    import torch

DeviceName: TypeAlias = Literal["cpu", "cuda"]
DeviceChoice: TypeAlias = Literal["auto", "cpu", "cuda"]
Precision: TypeAlias = Literal["float32", "tf32", "bf16"]
Engine: TypeAlias = Literal["shared", "batched"]

MAX_MASKS = 10_000  # of a clip: two minutes copy by copy; memory does not grow with them


def pick_device(name: DeviceChoice, precision: Precision = "float32") -> DeviceName:
    """The device meant by a name; "auto" is a GPU if there is one.

    Raises:
        UserError: there is no GPU to use, or none for the precision.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device 'cuda': PyTorch sees no CUDA device here; choose cpu")
    if available and name != "cpu":
        return "cuda"
    if precision == "tf32":
        raise UserError("precision 'tf32' is for GPUs; on a CPU choose float32 or bf16")
    return "cpu"


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device; copies to a GPU go through pinned memory and are not waited for."""
    import torch

    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Inside, PyTorch's switch for float32 matrix products allows TF32 if `precision` is tf32."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
