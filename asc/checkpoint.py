"""Weights on disk: our training checkpoints, our folded files, upstream's files, and bare
state_dicts of either network, with what DDP and `torch.compile` put before names.

A folded file is a `torch.save` dictionary of `format` ("asc-folded-float16"), `classes` (names),
`specaugment` (the bounds of the masks trained with), `temperature` (what the logits are divided by,
1.0: nothing), `fitted_on` (the clips of that, see `asc.fitted.FittedOn`, or None), `level`
(see `Cnn6Sep.level`, or None), `run` (the settings that it was trained with, or None) and
`parameters` (62 474 values for ten classes, 124 948 bytes, as views of one tensor); it is computed
with in float32.
"""

import io
import math
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asc.augment import SpecAugment
from asc.errors import UserError
from asc.files import atomic
from asc.fitted import FittedOn
from asc.journal import digest
from asc.model import Cnn6Sep, MelAffine
from asc.tensors import SAFETENSORS_FORMAT, is_safetensors, read_safetensors

FOLDED_FORMAT = "asc-folded-float16"
_SHOWN = 3  # names listed in an error
# What stands in names when a network was saved inside a Lightning module, DDP or torch.compile.
_WRAPPERS = {"model", "module", "_orig_mod"}


def load_model(path: str | Path, *, eps: float | None = None) -> Cnn6Sep:
    """The network of a file, folded for inference: float32, on the CPU, in eval mode.

    The file is recognised by its content: a training checkpoint, a folded file (`save_folded`), a
    checkpoint of SP4ASC, the report's own code, or the state_dict alone of a network of ours or
    theirs; it then has the default masks, and ten classes are those of TAU. PyTorch's default dtype
    and device play no part.

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
    content = folded_content(model, path)
    with atomic(Path(path)) as file:
        file.write(content)


def fingerprint(model: Cnn6Sep) -> str:
    """A digest of the network's classes and parameters, in hexadecimal: who it is."""
    tensors = model.state_dict().items()
    of_each = [(name, tuple(t.shape), t.cpu().numpy().tobytes()) for name, t in tensors]
    return digest(model.classes, *(part for each in of_each for part in each)).hex()[:32]


def folded_content(model: Cnn6Sep, path: str | Path) -> bytes:
    """What `save_folded` writes; path is for its errors."""
    folded = model.folded()
    halved = {name: tensor.half().cpu() for name, tensor in folded.state_dict().items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            largest = folded.state_dict()[name].abs().max().item()
            raise UserError(
                f"{path}: not written, '{name}' holds {largest:g}, which float16 cannot (65504 at "
                "most); a channel of the network hardly varies: train longer or on more data"
            )
    content = {"format": FOLDED_FORMAT, **description(folded), "parameters": _joined(halved)}
    buffer = io.BytesIO()  # torch.save makes a full disk a RuntimeError, a plain write an OSError
    torch.save(content, buffer)
    return buffer.getvalue()


def description(model: Cnn6Sep) -> dict[str, Any]:
    """What our files hold of a network besides its parameters, as plain values."""
    return {
        "classes": list(model.classes),
        "specaugment": asdict(model.specaugment),
        "temperature": model.temperature,
        "fitted_on": None if model.fitted_on is None else asdict(model.fitted_on),
        "level": model.level,
        "run": model.run,
    }


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as views of one: a file takes 300 bytes for each that has memory of its own."""
    parts = torch.cat([tensor.flatten() for tensor in tensors.values()]).split(
        [tensor.numel() for tensor in tensors.values()]
    )
    pairs = zip(tensors.items(), parts, strict=True)
    return {name: part.view(tensor.shape) for (name, tensor), part in pairs}


def _load(path: Path) -> Cnn6Sep:
    """The network as the file has it, trainable or folded."""
    content = read(path)
    described = None  # what holds the names of the classes and the masks of our own files
    if "pytorch-lightning_version" in content:
        state = _dictionary(path, content, "state_dict")
        described = _dictionary(path, content, "hyper_parameters")
    elif content.get("format") in (FOLDED_FORMAT, SAFETENSORS_FORMAT):
        state, described = _dictionary(path, content, "parameters"), content
    elif "net" in content:
        state = _dictionary(path, content, "net")
    elif any(isinstance(value, Tensor) for value in content.values()):
        state = content
    else:
        raise UserError(
            f"{path}: holds none of the networks we know (its keys: {_some(content)}); expected a "
            "training checkpoint or folded weights of asc, a checkpoint of SP4ASC, or a network's "
            "state_dict: torch.save(model.state_dict(), ...)"
        )

    state = _unwrapped(path, state)
    model = _new(state)
    if "bn0.scale" in state:
        model = model.folded()
    if described is not None:
        _describe(path, model, described)
        _describe_calibration(path, model, described)
        model.run = _settings(content)
    elif "net" in content:
        model.specaugment = _upstream_specaugment(path, content)
    if any(name.startswith("conv1.") for name in state):
        state = _from_upstream(path, state, model)

    expected = model.state_dict()
    _check_keys(path, set(expected), set(state))
    for name, tensor in expected.items():
        _check_shape(path, name, state[name], tuple(tensor.shape))
    state = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    _check_finite(path, "", state)
    model.load_state_dict(state)
    return model


def read(path: Path) -> dict[str, Any]:
    """The content of a file that torch.save made of a dictionary, or of a safetensors file.

    Raises:
        UserError: no such file, or it is damaged or holds something else.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file of weights")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if is_safetensors(path):
        return read_safetensors(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises half a dozen types for damaged files
        raise UserError(f"{path}: {_refusal(str(error))}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path}: holds a {kind}, expected a dictionary with a network's weights")
    return content


def _refusal(error: str) -> str:
    """Why torch.load would not read a file: what it holds besides tensors, and what to do."""
    if "TorchScript" in error:
        held = "a TorchScript program"
    elif found := re.search(r"GLOBAL (\S+)", error):
        held = f"objects of Python ({found[1]})"
    else:
        return "is not a PyTorch checkpoint, or is damaged"
    return (
        f"is not a PyTorch checkpoint of tensors alone: it holds {held}, which could run any code "
        "and is not loaded; where you trust it, load it with torch.load(..., weights_only=False) "
        "and save the weights alone: torch.save(model.state_dict(), ...)"
    )


def _unwrapped(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The state without the wrappers in its names, and without their own tensors."""
    unwrapped: dict[str, Any] = {}
    for name, value in state.items():
        if name == "n_averaged":  # of torch.optim.swa_utils.AveragedModel
            continue
        short = ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
        if short in unwrapped:
            raise UserError(f"{path}: holds more than one network ('{short}' is there twice)")
        unwrapped[short] = value
    return unwrapped


def _new(state: dict[str, Any]) -> Cnn6Sep:
    """A float32 network on the CPU with as many outputs as the state's; ten if it does not say."""
    bias = state.get("fc2.bias")
    with torch.device("cpu"):  # whatever the default device is, and the default dtype
        if isinstance(bias, Tensor) and bias.ndim == 1 and len(bias) > 0:
            return Cnn6Sep(len(bias)).float()
        return Cnn6Sep().float()


def _describe(path: Path, model: Cnn6Sep, source: dict[str, Any]) -> None:
    """Takes over the names of the classes and the masks from one of our files."""
    classes, specaugment = source.get("classes"), source.get("specaugment")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: is not a checkpoint of asc (no list 'classes')")
    if len(classes) != len(model.classes):
        raise UserError(
            f"{path}: names {len(classes)} classes but the network has {len(model.classes)} outputs"
        )
    if not isinstance(specaugment, dict):
        raise UserError(f"{path}: is not a checkpoint of asc (no dictionary 'specaugment')")
    try:
        model.specaugment = SpecAugment(**specaugment)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: mask settings of another form: 'specaugment' is {specaugment}, expected "
            "integers time_width and freq_width, at least 1, and stripes, at least 0"
        ) from error
    model.classes = tuple(classes)


def _describe_calibration(path: Path, model: Cnn6Sep, source: dict[str, Any]) -> None:
    """Takes over temperature, its clips, and level, which older files do not have."""
    temperature, level = source.get("temperature", 1.0), source.get("level")
    if not _is_number(temperature) or temperature <= 0:
        raise UserError(f"{path}: 'temperature' is {temperature!r}, expected a positive number")
    if level is not None and not _is_number(level):
        raise UserError(f"{path}: 'level' is {level!r}, expected a number of dB")
    fitted_on = source.get("fitted_on")
    if fitted_on is not None:
        try:
            model.fitted_on = FittedOn(**fitted_on | {"hashes": tuple(fitted_on["hashes"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"{path}: 'fitted_on' is of another form") from error
    model.temperature = float(temperature)
    if isinstance(model.bn0, MelAffine):  # else its running means tell
        model.bn0.level = level


def _settings(content: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that one of our files comes from, if it has them."""
    if content.get("format") in (FOLDED_FORMAT, SAFETENSORS_FORMAT):
        run = content.get("run")
    else:
        about = {"classes", "specaugment"}  # of the network, beside the settings
        run = {k: v for k, v in content["hyper_parameters"].items() if k not in about}
    return run if isinstance(run, dict) and "preset" in run else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


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


def _upstream_specaugment(path: Path, content: dict[str, Any]) -> SpecAugment:
    """From upstream's list of time width, time stripes, frequency width, frequency stripes."""
    config = content.get("config")
    if not isinstance(config, dict) or "specAugment" not in config:
        return SpecAugment()
    masks = config["specAugment"]
    try:
        time_width, stripes, freq_width, same = masks
        if stripes != same:
            raise ValueError("one number of stripes for both axes")
        return SpecAugment(time_width, freq_width, stripes)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: mask settings of another form: 'specAugment' is {masks!r}, expected integers "
            "[time width, stripes, frequency width, the same stripes], widths at least 1"
        ) from error


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
