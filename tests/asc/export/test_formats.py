import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asc.checkpoint import load_model
from asc.export import Format, formats, plain
from asc.features import LogMel
from asc.model import Cnn6Sep

Refused = Callable[..., AbstractContextManager[None]]
# How far a folded file's logits may be: eleven roundings of parameters to float16 on the way from a
# log-mel to a logit, each by 2^-11 of what it multiplies.
FLOAT16 = 11 * 2**-11


@pytest.mark.parametrize("form", ["float16", "safetensors"])
def test_what_asc_loads_again(form: Format, model: Cnn6Sep, tmp_path: Path) -> None:
    made = formats.exported(model, form, tmp_path / "x")
    (tmp_path / "x").write_bytes(made.content)
    loaded = load_model(tmp_path / "x")
    if form == "float16":
        assert 0 < made.difference <= FLOAT16 * made.largest
    else:
        assert made.difference == 0
    assert (loaded.classes, loaded.specaugment) == (model.classes, model.specaugment)
    assert (loaded.temperature, loaded.level) == (0.1, model.level)
    for name, tensor in loaded.state_dict().items():
        expected = model.state_dict()[name]
        assert torch.equal(tensor, expected.half().float() if form == "float16" else expected)


def test_difference_is_of_what_was_written(model: Cnn6Sep, tmp_path: Path) -> None:
    """Which is where the front end adds up in another order."""
    made = formats.exported(model, "onnx", tmp_path / "x", front_end=True)
    assert 0 < made.difference < 1e-5 * made.largest


@pytest.mark.parametrize(("form", "factor"), [("float16", float("nan")), ("onnx", 1.05)])
def test_files_that_compute_something_else_are_refused(
    form: Format,
    factor: float,
    model: Cnn6Sep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    opened = formats._opened

    def spoilt(*arguments: Any) -> Any:
        run = opened(*arguments)
        return lambda x: run(x) * factor

    monkeypatch.setattr(formats, "_opened", spoilt)
    with refused(tmp_path / "x", "not written", "off by"):
        formats.exported(model, form, tmp_path / "x")


def test_what_no_file_can_be(
    model: Cnn6Sep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    with refused("--front-end", "onnx", "float16"):
        formats.exported(model, "float16", tmp_path / "x", front_end=True)
    with refused("x.onnx", ".pt2"):
        formats.exported(model, "torch-export", tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refused("'onnxruntime'", "pip install 'fastsep[export]'"):
        formats.exported(model, "onnx", tmp_path / "x")


def test_float16_of_released_weights_on_recordings(
    released: Cnn6Sep, recordings: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "released.pt"
    path.write_bytes(formats.exported(released, "float16", path).content)
    assert path.stat().st_size < 128 * 1024
    x = LogMel()(recordings)
    expected = released(x)
    off = (plain.opened(path)(x) - expected).abs().max()
    assert 0 < off < FLOAT16 * expected.abs().max()  # measured: 1.6e-3
