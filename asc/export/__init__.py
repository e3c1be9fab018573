"""Files for other programs: each is opened there and run again before it is kept."""

from typing import Literal, TypeAlias

Format: TypeAlias = Literal["float16", "safetensors", "onnx", "torch-export"]
