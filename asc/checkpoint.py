"""Weights on disk: our training checkpoints, our folded float16 files, and upstream's files.

A folded file is a `torch.save` dictionary of `format` ("asc-folded-float16"), `classes` (names),
`specaugment` (the bounds of the masks trained with) and `parameters` (62 474 values for ten
classes, 124 948 bytes); it is computed with in float32.
"""

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asc.augment import SpecAugment
from asc.errors import UserError
from asc.files import atomic
from asc.model import Cnn6Sep

FOLDED_FORMAT = "asc-folded-float16"
_SHOWN = 3  # names listed in an error


def load_model(path: str | Path, *, eps: float | None = None) -> Cnn6Sep:
    """The network of a file, folded for inference: float32, on the CPU, in eval mode.

    The file is recognised by its content: a training checkpoint, a folded file (`save_folded`) or a
    checkpoint of SP4ASC, the report's own code.

    Args:
        path: the file.
        eps: see `Cnn6Sep.folded`; only for files that are not folded yet.

    Returns:
        Takes log-mels (N, 1, T, 256), returns logits (N, classes). `.classes` names them.

    Raises:
        UserError: no such file, not a checkpoint or damaged, keys or shapes that do not fit, values
            that are not finite, eps for a folded file or out of range.
    """
    if eps is not None and not 0 <= eps < math.inf:
        raise UserError(f"eps must be a number that is not negative, got {eps}")
    model = _load(Path(path))
    if model.is_folded:
        if eps is not None:
            raise UserError(f"{path}: is folded already, so eps cannot be chosen any more")
        return model.eval()
    try:
        folded = model.folded(eps=eps)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    _check_finite(path, "after folding, ", folded.state_dict())
    return folded


def load_trainable(path: str | Path) -> Cnn6Sep:
    """The network of a file with its batch norms, in train mode: to train on, or to look into.

    Raises:
        UserError: as `load_model`, and for folded files, whose batch norms are gone.
    """
    model = _load(Path(path))
    if model.is_folded:
        raise UserError(f"{path}: is folded, which cannot be undone; use the training checkpoint")
    return model


def save_folded(model: Cnn6Sep, path: str | Path) -> None:
    """Writes the network folded and rounded to float16, all or nothing.

    Args:
        model: trained or folded; left as it is.
        path: the file; its folder has to be there.

    Raises:
        UserError: a value that is too large for float16, or not finite.
        OSError: the file cannot be written.
    """
    folded = model.folded()
    halved = {name: tensor.half().cpu() for name, tensor in folded.state_dict().items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            largest = folded.state_dict()[name].abs().max().item()
            raise UserError(
                f"{path}: not written, '{name}' holds {largest:g}, which float16 cannot (65504 at "
                "most); a channel of the network hardly varies: train longer or on more data"
            )
    content = {
        "format": FOLDED_FORMAT,
        "classes": list(folded.classes),
        "specaugment": asdict(folded.specaugment),
        "parameters": halved,
    }
    buffer = io.BytesIO()  # torch.save makes a full disk a RuntimeError, a plain write an OSError
    torch.save(content, buffer)
    with atomic(Path(path)) as file:
        file.write(buffer.getbuffer())


def _load(path: Path) -> Cnn6Sep:
    """The network as the file has it, trainable or folded."""
    content = read(path)
    if "pytorch-lightning_version" in content:
        state = _dictionary(path, content, "state_dict")
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        model = _new(state)
        _describe(path, model, _dictionary(path, content, "hyper_parameters"))
    elif content.get("format") == FOLDED_FORMAT:
        state = _dictionary(path, content, "parameters")
        model = _new(state).folded()
        _describe(path, model, content)
    elif "net" in content:
        state = _dictionary(path, content, "net")
        model = _new(state)
        model.specaugment = _upstream_specaugment(content)
        state = _from_upstream(path, state, model)
    else:
        raise UserError(
            f"{path}: holds none of the networks we know (its keys: {_some(content)}); expected a "
            "training checkpoint or folded weights of asc, or a checkpoint of SP4ASC"
        )

    expected = model.state_dict()
    _check_keys(path, set(expected), set(state))
    for name, tensor in expected.items():
        _check_shape(path, name, state[name], tuple(tensor.shape))
    state = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    _check_finite(path, "", state)
    model.load_state_dict(state)
    return model


def read(path: Path) -> dict[str, Any]:
    """The content of a file that torch.save made of a dictionary.

    Raises:
        UserError: no such file, or it is damaged or holds something else.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file of weights")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises half a dozen types for damaged files
        raise UserError(f"{path}: is not a PyTorch checkpoint, or is damaged") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path}: holds a {kind}, expected a dictionary with a network's weights")
    return content


def _new(state: dict[str, Any]) -> Cnn6Sep:
    """A network with as many outputs as the state's; ten if it does not say."""
    bias = state.get("fc2.bias")
    if isinstance(bias, Tensor) and bias.ndim == 1 and len(bias) > 0:
        return Cnn6Sep(len(bias))
    return Cnn6Sep()


def _describe(path: Path, model: Cnn6Sep, source: dict[str, Any]) -> None:
    """Takes over the names of the classes and the masks from one of our files."""
    classes, specaugment = source.get("classes"), source.get("specaugment")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: is not a checkpoint of asc (no list 'classes')")
    if len(classes) != len(model.classes):
        raise UserError(
            f"{path}: names {len(classes)} classes but the network has {len(model.classes)} outputs"
        )
    try:
        model.specaugment = SpecAugment(**specaugment)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"{path}: is not a checkpoint of asc (no 'specaugment')") from error
    model.classes = tuple(classes)


def _upstream(name: str) -> str:
    """Our name of a tensor -> upstream's: blocks.0.conv.pointwise -> conv1.ch_conv1.weight."""
    if not name.startswith("blocks."):
        return name
    _, index, rest = name.split(".", 2)
    renamed = {
        "conv.pointwise": "ch_conv1.weight",
        "conv.time_taps": "sp_conv1.weight",
        "conv.freq_taps": "sp_conv2.weight",
    }
    return f"conv{int(index) + 1}.{renamed.get(rest, rest)}"


def _from_upstream(path: Path, state: dict[str, Any], model: Cnn6Sep) -> dict[str, Tensor]:
    """The state under our names, convolution weights without their axes of length 1."""
    expected = model.state_dict()
    _check_keys(path, {_upstream(name) for name in expected}, set(state))
    ours = {}
    for name, tensor in expected.items():
        theirs, shape = _upstream(name), tuple(tensor.shape)
        if name.endswith("pointwise"):
            shape = (*shape, 1, 1)
        elif name.endswith("time_taps"):
            shape = (shape[0], 1, 3, 1)
        elif name.endswith("freq_taps"):
            shape = (shape[0], 1, 1, 3)
        _check_shape(path, theirs, state[theirs], shape)
        ours[name] = state[theirs].reshape(tensor.shape)
    return ours


def _upstream_specaugment(content: dict[str, Any]) -> SpecAugment:
    """From upstream's list of time width, time stripes, frequency width, frequency stripes."""
    config = content.get("config")
    match config.get("specAugment") if isinstance(config, dict) else None:
        case [int(time_width), int(stripes), int(freq_width), int(same)] if stripes == same:
            return SpecAugment(time_width, freq_width, stripes)
    return SpecAugment()


def _dictionary(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a checkpoint of a network ('{key}' is not a dictionary)")
    return value


def _check_keys(path: Path, expected: set[str], found: set[str]) -> None:
    problems = [
        f"{word} {_some(names)}"
        for word, names in (("missing", expected - found), ("unexpected", found - expected))
        if names
    ]
    if problems:
        raise UserError(f"{path}: is not a checkpoint of Cnn6Sep: {'; '.join(problems)}")


def _check_shape(path: Path, name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path}: '{name}' is a {type(tensor).__name__}, expected a tensor")
    if tensor.is_complex() or tensor.is_quantized or tensor.is_sparse:
        raise UserError(f"{path}: '{name}' is not a tensor of plain numbers")
    if tuple(tensor.shape) != shape:
        raise UserError(f"{path}: '{name}' has shape {tuple(tensor.shape)}, expected {shape}")


def _check_finite(path: str | Path, when: str, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {when}'{name}' holds values that are NaN or infinite")


def _some(names: Any) -> str:
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more
