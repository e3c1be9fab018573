"""The folder that participants of DCASE 2025 Task 1 hand in: a network that needs no `asc`."""

import importlib.util
import inspect
import keyword
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from asc.checkpoint import folded_content, load_model
from asc.data import load_clip
from asc.errors import UserError
from asc.export import submission
from asc.features import LogMel
from asc.files import atomic, make_folder
from asc.model import Cnn6Sep
from asc.task import SAMPLE_RATE

_ALLOWED = 1e-3  # of the largest logit: the order of sums, in the log-mels too
_README = """\
# {name}

A network for acoustic scene classification with the functions of an inference package of DCASE 2025
Task 1: `predict`, `load_model`, `load_inputs`, `get_model_for_device`. It needs Python 3.11 with
torch, numpy and soundfile.

    from {name} import {name}_1
    logits, class_order = {name}_1.predict(["scene.wav"])

Files are of 44.1 kHz; their first 10 s count, shorter ones are repeated. Parameters: {parameters}
in float16, {size} bytes; computed with in float32. {calibration}

Classes: {classes}.
"""


def check_package(folder: Path) -> None:
    """UserError unless the folder is new or empty, and its name one that Python can import."""
    name = folder.absolute().name
    imported = {*sys.stdlib_module_names, "torch", "numpy", "soundfile", "asc", "fastsep"}
    if not name.isidentifier() or keyword.iskeyword(name) or name in imported:
        raise UserError(
            f"{folder}: Python imports the package by the folder's name, which '{name}' cannot be: "
            "letters, digits and _ only, and no other module's, such as Name_Institution_task1"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose a new folder")


def write_package(model: Cnn6Sep, folder: Path) -> tuple[float, float]:
    """Writes the package, after running it on noise in a temporary folder.

    Args:
        model: folded, float32, on the CPU.
        folder: new or empty; its name becomes the package's, NAME, in which NAME_1 is the module.

    Returns:
        The largest difference from the rounded network's logits, and the largest of these.

    Raises:
        UserError: see `check_package`; a value is too large for float16.
        OSError: it cannot be written.
    """
    check_package(folder)
    name = folder.absolute().name
    weights = folded_content(model, folder / "weights.pt")
    files = {
        "README.md": _readme(model, name).encode(),
        "weights.pt": weights,
        "__init__.py": b"",
        f"{name}_1.py": inspect.getsource(submission).encode(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        for file, content in files.items():
            (Path(temporary) / file).write_bytes(content)
        difference, largest = _run(Path(temporary), name)
    if not difference <= _ALLOWED * largest:
        raise UserError(
            f"{folder}: not written, its logits are off by {difference:g} where the largest is "
            f"{largest:g}; this should not happen, please report it"
        )
    make_folder(folder)
    for file, content in files.items():
        with atomic(folder / file) as out:
            out.write(content)
    return difference, largest


def _run(folder: Path, name: str) -> tuple[float, float]:
    """What the package makes of 3 s of noise, against what `asc` makes of it."""
    spec = importlib.util.spec_from_file_location(f"{name}_1", folder / f"{name}_1.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    noise = folder / "noise.wav"
    samples = np.random.default_rng(0).normal(0, 0.1, 3 * SAMPLE_RATE)
    soundfile.write(noise, samples, SAMPLE_RATE, "PCM_24")
    (logits,), _ = module.predict([str(noise)])
    with torch.inference_mode():
        expected = load_model(folder / "weights.pt")(LogMel()(load_clip(noise)))[0]
    difference = (logits - expected).abs().nan_to_num(torch.inf).max().item()
    return difference, expected.abs().max().item()


def _readme(model: Cnn6Sep, name: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _README.format(
        name=name,
        parameters=parameters,
        size=2 * parameters,
        calibration=f"Calibrated, temperature {model.temperature:.4f}."
        if model.temperature != 1
        else "Not calibrated.",
        classes=", ".join(model.classes),
    )
