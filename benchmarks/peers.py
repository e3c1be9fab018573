"""Other ways to run the same folded network, each set up as its documentation advises."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Run = Callable[[], object]


def eager(model: nn.Module, x: Tensor, threads: int) -> Run:
    """PyTorch operators one by one, contiguous (NCHW) maps."""
    return lambda: model(x)


def channels_last(model: nn.Module, x: Tensor, threads: int) -> Run:
    """PyTorch operators one by one, channels_last maps."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda: model(x.contiguous(memory_format=torch.channels_last))


def compiled(model: nn.Module, x: Tensor, threads: int) -> Run:
    """torch.compile with its defaults."""
    torch.compiler.reset()
    run = torch.compile(model, fullgraph=True, dynamic=False)
    return lambda: run(x)


def compiled_frozen(model: nn.Module, x: Tensor, threads: int) -> Run:
    """torch.compile for inference on CPUs: weights frozen (and prepacked), max-autotune."""
    import torch._inductor.config as inductor

    torch.compiler.reset()
    inductor.freezing = True
    run = torch.compile(model, fullgraph=True, dynamic=False, mode="max-autotune")
    with torch.no_grad():  # freezing needs it; inference mode tensors cannot be frozen
        run(x)
    inductor.freezing = False

    def call() -> Tensor:
        with torch.no_grad():
            return run(x)

    return call


def onnxruntime(model: nn.Module, x: Tensor, threads: int) -> Run:
    """ONNX Runtime, CPU provider, all graph optimisations (its default)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(_onnx(model, x), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def openvino(model: nn.Module, x: Tensor, threads: int) -> Run:
    """OpenVINO, CPU, float32, latency hint (one request at a time on all threads)."""
    return _openvino(model, x, threads, "f32")


def openvino_bf16(model: nn.Module, x: Tensor, threads: int) -> Run:
    """OpenVINO, CPU, bfloat16 inference precision."""
    return _openvino(model, x, threads, "bf16")


def _openvino(model: nn.Module, x: Tensor, threads: int, precision: str) -> Run:
    import openvino as ov

    core = ov.Core()
    network = core.read_model(io.BytesIO(_onnx(model, x)))
    network.reshape(list(x.shape))
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(network, "CPU", options).create_infer_request()
    feed = np.ascontiguousarray(x.numpy())
    return lambda: request.infer([feed], share_inputs=True)


def _onnx(model: nn.Module, x: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
        return path.read_bytes()


PEERS: dict[str, Callable[[nn.Module, Tensor, int], Run]] = {
    "eager, NCHW": eager,
    "eager, channels_last": channels_last,
    "torch.compile": compiled,
    "torch.compile, frozen, max-autotune": compiled_frozen,
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
    "OpenVINO, bf16": openvino_bf16,
}
