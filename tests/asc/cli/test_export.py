import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from asc.export import plain

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "--format and --out"),
        (("--format", "onnx"), "--format and --out"),
        (("--out", "x.onnx"), "--format and --out"),
        (("--format", "tflite", "--out", "x"), "--format"),
        (("--format", "onnx", "--out", "/no/such/folder/x.onnx"), "/no/such/folder/x.onnx"),
        (("--format", "float16", "--out", "x.pt", "--front-end"), "--front-end"),
        (("--format", "torch-export", "--out", "x.pt"), ".pt2"),
        (("--package", "d", "--format", "onnx"), "--package takes no"),
        (("--package", "d-1"), "d-1"),
    ],
)
def test_bad_arguments(options: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, "export", "w", *options)


def test_float16_comes_with_the_lines_that_load_it(
    weights: Path, tmp_path: Path, asc_: Asc
) -> None:
    out = tmp_path / "network.pt"
    code, output, error = asc_("export", weights, "--format", "float16", "--out", out)
    assert (code, error) == (0, "")
    said, lines = output.split("\n\n")
    assert said.startswith(f"{out}: float16, 128425 bytes (125.4 KiB); on noise its logits differ")
    assert lines == f"{plain.lines(out)}\n"
    assert out.read_bytes() == weights.read_bytes()  # which are folded and rounded already


def test_onnx_and_safetensors(weights: Path, tmp_path: Path, asc_: Asc) -> None:
    out = tmp_path / "network.onnx"
    code, output, _ = asc_("export", weights, "--format", "onnx", "--front-end", "--out", out)
    assert code == 0 and output.startswith(f"{out}: onnx, {out.stat().st_size} bytes")
    session = onnxruntime.InferenceSession(out)
    assert [given.name for given in session.get_inputs()] == ["samples"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"])[:2] == ["airport", "bus"]
    assert json.loads(metadata["front_end"])["hop"] == 1024
    assert (metadata["sample_rate"], metadata["temperature"]) == ("44100", "1.0")
    assert "level" in metadata and "fitted_on" not in metadata

    out = tmp_path / "network.safetensors"
    assert asc_("export", weights, "--format", "safetensors", "--out", out)[0] == 0
    code, output, _ = asc_("info", out)
    assert code == 0 and "124948" in output.replace(" ", "")


def test_package(weights: Path, tmp_path: Path, asc_: Asc) -> None:
    folder = tmp_path / "Someone_Lab_task1"
    code, output, error = asc_("export", weights, "--package", folder)
    assert (code, error) == (0, "") and output.startswith(f"{folder}: a package; on noise")
    assert (folder / "weights.pt").read_bytes() == weights.read_bytes()
