"""ONNX files, written operator by operator: log-mels or samples in, logits out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from asc.errors import needed
from asc.model import Cnn6Sep
from asc.task import HOP, N_FFT, N_MELS, SAMPLE_RATE
from fastsep import SepConvBlock

OPSET = 18
_IR = 8  # of the ONNX release with that opset: older programs refuse files of a later one
# Cooley and Tukey: the DFT of 32 * 64 samples is 64 DFTs of 32 samples and 32 of 64.
_P, _Q = 32, 64


class _Graph:
    """Nodes and constants, as they are added."""

    def __init__(self) -> None:
        self.onnx = needed("onnx", "export")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: "str | NDArray[Any]", **attributes: Any) -> str:
        """A node of an operator on values and arrays; its output's name."""
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, names, [output], output, **attributes))
        return output

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        """The parts of a value."""
        inputs, number = [x, self._constant(np.array(sizes))], len(self.nodes)
        parts = [f"Split_{number}_{i}" for i in range(len(sizes))]
        node = self.onnx.helper.make_node("Split", inputs, parts, f"Split_{number}", axis=axis)
        self.nodes.append(node)
        return parts

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def content(model: Cnn6Sep, description: Mapping[str, Any], front_end: bool) -> bytes:
    """A file with an input "logmel", or "samples", and an output "logits" (clips, classes).

    Args:
        model: folded.
        description: plain values for the metadata, each as JSON under its key.
        front_end: whether it takes samples (clips, samples) of 44.1 kHz, at least 15 360, not
            log-mels (clips, 1, frames, 256), at least 16 frames.

    Raises:
        UserError: the package onnx is not installed.
    """
    graph = _Graph()
    helper, float32 = graph.onnx.helper, graph.onnx.TensorProto.FLOAT
    name = "samples" if front_end else "logmel"
    shape = ["clips", "samples"] if front_end else ["clips", 1, "frames", N_MELS]
    logits = _network(graph, model, _logmel(graph, name) if front_end else name)
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"], "logits"))
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "acoustic scene classification",
            [helper.make_tensor_value_info(name, float32, shape)],
            [helper.make_tensor_value_info("logits", float32, ["clips", len(model.classes)])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR,
        producer_name="asc",
    )
    helper.set_model_props(made, {key: json.dumps(value) for key, value in description.items()})
    graph.onnx.checker.check_model(made, full_check=True)
    result: bytes = made.SerializeToString()
    return result


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """What ONNX Runtime computes of a file.

    Raises:
        UserError: the package onnxruntime is not installed.
    """
    runtime = needed("onnxruntime", "export")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def _network(graph: _Graph, model: Cnn6Sep, x: str) -> str:
    """Log-mels (clips, 1, frames, 256) -> logits (clips, classes)."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    x = graph.add("Mul", x, weights["bn0.scale"])
    x = graph.add("Add", x, weights["bn0.shift"])
    for i, block in enumerate(model.blocks):
        assert isinstance(block, SepConvBlock) and block.bn is None
        d, channels = block.conv.dilation, block.conv.out_channels
        own = {key: weights[f"blocks.{i}.conv.{key}"] for key, _ in block.conv.named_parameters()}
        z = graph.add("Conv", x, own["pointwise"][:, :, None, None])
        time = graph.add(
            "Conv", z, own["time_taps"][:, None, :, None], own["bias"],
            group=channels, dilations=[d, 1], pads=[d, 0, d, 0],
        )  # fmt: skip
        freq = graph.add(
            "Conv", z, own["freq_taps"][:, None, None], group=channels, dilations=[1, d],
            pads=[0, d, 0, d],
        )  # fmt: skip
        y = graph.add("Relu", graph.add("Add", time, freq))
        size = [block.pool, block.pool]
        x = graph.add("AveragePool", y, kernel_shape=size, strides=size)
    x = graph.add("ReduceMean", x, np.array([3]), keepdims=0)
    largest, mean = (
        graph.add(kind, x, np.array([2]), keepdims=0) for kind in ("ReduceMax", "ReduceMean")
    )
    x = graph.add("Add", largest, mean)
    x = graph.add("Gemm", x, weights["fc1.weight"], weights["fc1.bias"], transB=1)
    return graph.add(
        "Gemm", graph.add("Relu", x), weights["fc2.weight"], weights["fc2.bias"], transB=1
    )


def _logmel(graph: _Graph, samples: str) -> str:
    """Samples (clips, samples) -> log-mels (clips, 1, frames, 256), as `asc.LogMel`.

    The DFT is products with small matrices, since STFT operators are slow or missing in most
    programs, and one with the whole DFT matrix takes six times as long and 17 MB.
    """
    half = N_FFT // 2
    x = graph.add("Pad", samples, np.array([0, half, 0, half]), mode="reflect")
    # Frames are two hops long: pairs of neighbours.
    length = graph.add("Gather", graph.add("Shape", x), np.array([1]))
    hops = graph.add("Mul", graph.add("Div", length, np.array([HOP])), np.array([HOP]))
    x = graph.add("Slice", x, np.array([0]), hops, np.array([1]))
    x = graph.add("Reshape", x, np.array([0, -1, HOP]))
    last = np.array([np.iinfo(np.int64).max])
    first = graph.add("Slice", x, np.array([0]), np.array([-1]), np.array([1]))
    second = graph.add("Slice", x, np.array([1]), last, np.array([1]))
    x = graph.add("Concat", first, second, axis=2)
    x = graph.add("Mul", x, torch.hann_window(N_FFT, dtype=torch.float64).float().numpy())
    x = graph.add("Reshape", x, np.array([0, 0, _P, _Q]))  # sample _Q p + q at (p, q)

    # Over p for each q, real parts above imaginary ones. Rows beyond _P / 2 are conjugates of those
    # before: in rows to _P / 2, all columns of the second DFT hold every bin or its mirror.
    rows = _P // 2 + 1
    cos, sin = _dft(rows, _P, _P)
    x = graph.add("MatMul", np.concatenate([cos, -sin]).astype(np.float32), x)
    re, im = graph.split(x, [rows, rows], axis=2)
    turn_re, turn_im = (part.astype(np.float32) for part in _dft(rows, _Q, N_FFT))
    turned = (
        graph.add("Add", graph.add("Mul", re, turn_re), graph.add("Mul", im, turn_im)),
        graph.add("Sub", graph.add("Mul", im, turn_re), graph.add("Mul", re, turn_im)),
    )
    x = graph.add("Concat", *turned, axis=3)
    cos, sin = _dft(_Q, _Q, _Q)
    matrix = np.block([[cos, -sin], [sin, cos]]).astype(np.float32)
    x = graph.add("MatMul", x, matrix)  # bin k1 + _P k2 at (k1, k2)
    x = graph.add("Mul", x, x)
    x = graph.add("Reshape", x, np.array([0, 0, rows, 2, _Q]))
    x = graph.add("ReduceSum", x, np.array([3]), keepdims=0)
    x = graph.add("Reshape", x, np.array([0, 0, rows * _Q]))
    x = graph.add("MatMul", x, _filters(rows))
    x = graph.add("Log", graph.add("Max", x, np.array(1e-10, np.float32)))
    x = graph.add("Mul", x, np.array(10 / np.log(10), np.float32))
    return graph.add("Unsqueeze", x, np.array([1]))


def _dft(rows: int, columns: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """cos and sin of 2 pi row column / size."""
    turns = np.outer(np.arange(rows), np.arange(columns)) % size / size
    return np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)


def _filters(rows: int) -> NDArray[np.float32]:
    """Mel filters (rows * _Q, 256) for power in the order of the DFT's result.

    Of a bin and its mirror, where both are there, one is left out.
    """
    bins = np.arange(rows)[:, None] + _P * np.arange(_Q)
    bins = np.minimum(bins, N_FFT - bins).ravel()
    _, once = np.unique(bins, return_index=True)
    filters = melscale_fbanks(
        N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE, "slaney", "slaney"
    )
    result = np.zeros((len(bins), N_MELS), np.float32)
    result[once] = filters.float().numpy()[bins[once]]
    return result
