"""The formats by name, and whether what was written computes what the network computes."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from asc.checkpoint import description, folded_content, load_model
from asc.errors import UserError, needed
from asc.export import Format, onnx_file, plain, program
from asc.features import LogMel
from asc.model import Cnn6Sep
from asc.task import FRAMES, HOP, N_FFT, N_MELS, SAMPLE_RATE
from asc.tensors import safetensors_content

Run: TypeAlias = Callable[[Tensor], Tensor]

# Of the largest logit: what rounding does to weights of float16, and to sums in another order.
_ALLOWED = {"float16": 2e-2, "safetensors": 0.0, "onnx": 1e-3, "torch-export": 1e-3}
_NEEDED = {"safetensors": ["safetensors.torch"], "onnx": ["onnx", "onnxruntime"]}
_FRONT_END = {
    "n_fft": N_FFT,
    "hop": HOP,
    "window": "hann, periodic",
    "padding": "centred, reflect",
    "n_mels": N_MELS,
    "mel_range": [0.0, SAMPLE_RATE / 2],
    "mel_scale": "slaney",
    "mel_norm": "slaney",
    "log": "10 log10(max(power, 1e-10))",
}


@dataclass(frozen=True)
class Exported:
    """A file that computes what the network does.

    difference: the largest on noise, of logits of which the largest is `largest`.
    """

    content: bytes
    difference: float
    largest: float


def check(form: Format, path: Path, front_end: bool) -> None:
    """UserError for what no file can be."""
    if front_end and form != "onnx":
        raise UserError(f"--front-end is for the format onnx, not for {form}")
    if form == "torch-export" and path.suffix != ".pt2":
        raise UserError(f"{path}: torch.export.load wants names that end in .pt2")
    for package in _NEEDED.get(form, ()):
        needed(package, "export")


def exported(model: Cnn6Sep, form: Format, path: Path, *, front_end: bool = False) -> Exported:
    """The network as a file of a format, opened and run again.

    Args:
        model: folded, float32, on the CPU.
        form: "float16": what `asc.checkpoint.save_folded` writes, which `asc.export.plain` loads;
            "safetensors": folded float32 parameters, described in the metadata; "onnx": see
            `asc.export.onnx_file`; "torch-export": see `asc.export.program`.
        path: where it is to be, for errors.
        front_end: from samples; "onnx" only.

    Raises:
        UserError: a package is not installed, a value is too large for float16, a front end for
            another format; the file computes something else.
    """
    check(form, path, front_end)
    content = _content(model, form, path, front_end)
    largest, difference = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "network.pt2"
        file.write_bytes(content)
        run = _opened(file, form)
        for x in _noise(model, front_end):
            expected = model(LogMel()(x) if front_end else x)
            difference = max(
                difference, (run(x) - expected).abs().nan_to_num(torch.inf).max().item()
            )
            largest = max(largest, expected.abs().max().item())
    if not difference <= _ALLOWED[form] * largest:
        raise UserError(
            f"{path}: not written, its logits are off by {difference:g} where the largest is "
            f"{largest:g}; this should not happen, please report it"
        )
    return Exported(content, difference, largest)


def _content(model: Cnn6Sep, form: Format, path: Path, front_end: bool) -> bytes:
    described: dict[str, Any] = description(model)
    described |= {"sample_rate": SAMPLE_RATE, "front_end": _FRONT_END}
    if form == "float16":
        return folded_content(model, path)
    if form == "safetensors":
        return safetensors_content(model.state_dict(), described)
    del described["fitted_on"]  # which asc alone has a use for
    if form == "onnx":
        return onnx_file.content(model, described, front_end)
    return program.content(model, described)


def _opened(path: Path, form: Format) -> Run:
    """What a file computes, by the programs that it is for."""
    if form == "float16":
        return plain.opened(path)
    if form == "safetensors":
        return load_model(path)
    return onnx_file.opened(path) if form == "onnx" else program.opened(path)


def _noise(model: Cnn6Sep, front_end: bool) -> list[Tensor]:
    """Two batches, of clips of 10 s and of one short one with an odd number of frames."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if front_end:
        return [0.1 * noise(2, 10 * SAMPLE_RATE), 0.1 * noise(1, SAMPLE_RATE + 7)]
    level = -40.0 if model.level is None else model.level
    return [level + 10 * noise(2, 1, FRAMES, N_MELS), level + 10 * noise(1, 1, 43, N_MELS)]
