"""Safetensors files: tensors by name, and what a network is in the file's metadata.

The metadata are texts: `format` ("asc-folded-float32"), and as JSON what our other files hold of a
network besides its parameters, and the settings of the front end.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from asc.errors import UserError, needed

SAFETENSORS_FORMAT = "asc-folded-float32"


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as such files do: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def read_safetensors(path: Path) -> dict[str, Any]:
    """The content of one of our files, as `asc.checkpoint` has it; the tensors of any other.

    Raises:
        UserError: it is damaged, or the package is not installed.
    """
    safetensors = needed("safetensors", "export")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != SAFETENSORS_FORMAT:
            return tensors
        rest = {key: json.loads(text) for key, text in metadata.items() if key != "format"}
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: is a damaged safetensors file ({error})") from error
    return {**rest, "format": SAFETENSORS_FORMAT, "parameters": tensors}


def safetensors_content(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """A file of these tensors; description: plain values for the metadata.

    Raises:
        UserError: the package is not installed.
    """
    metadata = {key: json.dumps(value) for key, value in description.items()}
    save = needed("safetensors.torch", "export").save
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content: bytes = save(contiguous, metadata | {"format": SAFETENSORS_FORMAT})
    return content
