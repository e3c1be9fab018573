"""Acoustic scene classification: the functions of a DCASE 2025 Task 1 inference package.

Needs torch, numpy and soundfile. Beside this file lies weights.pt.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("weights.pt")
SAMPLE_RATE, SECONDS = 44_100, 10
N_FFT, HOP, N_MELS = 2048, 1024, 256


def predict(
    file_paths: Sequence[str],
    device_ids: Sequence[str] | None = None,
    model_file_path: str | None = None,
    use_cuda: bool = False,
) -> tuple[list[Tensor], list[str]]:
    """Logits of audio files.

    Args:
        file_paths: of 44.1 kHz; their first 10 s count, shorter ones are repeated, channels
            averaged.
        device_ids: ignored, all devices have one model.
        model_file_path: None for the weights of this package.
        use_cuda: whether to compute on a GPU.

    Returns:
        A tensor (classes,) for each file, and the names of the classes.
    """
    model = load_model(model_file_path)
    model.to("cuda" if use_cuda else "cpu")
    logits = []
    with torch.inference_mode():
        for path in file_paths:  # one by one, for constant memory
            (logmel,) = load_inputs([path], None, model)
            logits.append(model(logmel)[0].cpu())
    return logits, model.classes


def load_model(model_file_path: str | None = None) -> "Network":
    """The network of a file of weights; None: of this package."""
    file = torch.load(model_file_path or WEIGHTS, map_location="cpu", weights_only=True)
    return Network(file["classes"], file["parameters"]).eval()


def load_inputs(
    file_paths: Sequence[str], device_ids: Sequence[str] | None, model: "Network"
) -> list[Tensor]:
    """Log-mels (1, 1, 431, 256) of audio files, on the model's device; see `predict`."""
    device = model.fc1.weight.device
    return [log_mel(load_audio(path).to(device))[None, None] for path in file_paths]


def get_model_for_device(model: "Network", device_id: str) -> "Network":
    """The same for all devices."""
    return model


def load_audio(path: str) -> Tensor:
    """10 s of an audio file, (441000,)."""
    samples, rate = soundfile.read(
        path, frames=SECONDS * SAMPLE_RATE, dtype="float32", always_2d=True
    )
    if rate != SAMPLE_RATE or len(samples) == 0:
        raise ValueError(f"{path}: {len(samples)} samples at {rate} Hz, expected {SAMPLE_RATE} Hz")
    waveform = torch.from_numpy(samples).mean(dim=1)
    return waveform.repeat(math.ceil(SECONDS * SAMPLE_RATE / len(waveform)))[
        : SECONDS * SAMPLE_RATE
    ]


def log_mel(waveform: Tensor) -> Tensor:
    """(samples,) -> (1 + samples // 1024, 256) in dB."""
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True)
    power = spectrum.abs().square().T @ mel_filters().to(waveform.device)
    return 10 * power.clamp(min=1e-10).log10()


def mel_filters() -> Tensor:
    """Triangles (1025, 256) of the Slaney scale and area, from 0 to 22 050 Hz."""
    linear, log_step = 200 / 3, math.log(6.4) / 27  # Hz a mel below 1 kHz, mels a factor above
    highest = 15 + math.log(SAMPLE_RATE / 2 / 1000) / log_step
    mels = np.linspace(0, highest, N_MELS + 2)
    hertz = np.where(mels < 15, linear * mels, 1000 * np.exp(log_step * (mels - 15)))
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    low, centre, high = hertz[:-2], hertz[1:-1], hertz[2:]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return torch.from_numpy((triangles.clip(min=0) * 2 / (high - low)).astype(np.float32))


class Conv(nn.Conv2d):
    """With parameters in float16, which is what they are stored in, and float32 products."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(x, self.weight.float(), bias)


class Linear(nn.Linear):
    """As `Conv`."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.float(), self.bias.float())


class Block(nn.Module):
    """A separable convolution, ReLU and pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        taps: dict[str, Any] = {"groups": outputs, "padding": "same"}
        self.pointwise = Conv(inputs, outputs, 1, bias=False)
        self.time = Conv(outputs, outputs, (3, 1), dilation=(2, 1), **taps)
        self.freq = Conv(outputs, outputs, (1, 3), dilation=(1, 2), bias=False, **taps)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pointwise(x)
        return nn.functional.avg_pool2d((self.time(z) + self.freq(z)).relu(), 2)


class Network(nn.Module):
    """Log-mels (N, 1, T, 256) -> logits (N, classes). parameters: those of the file of weights."""

    def __init__(self, classes: list[str], parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.classes = classes
        shapes = [parameters[f"blocks.{i}.conv.pointwise"].shape for i in range(4)]
        self.scale, self.shift = (nn.Parameter(torch.empty(N_MELS)) for _ in range(2))
        self.blocks = nn.ModuleList(Block(inputs, outputs) for outputs, inputs in shapes)
        hidden, width = parameters["fc1.weight"].shape
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, len(classes))
        self.half().requires_grad_(False)
        renamed = {_renamed(name): tensor for name, tensor in parameters.items()}
        own = self.state_dict()
        self.load_state_dict({name: t.reshape(own[name].shape) for name, t in renamed.items()})

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale.float() + self.shift.float()
        for block in self.blocks:
            x = block(x)
        x = x.mean(dim=3)
        return self.fc2(self.fc1(x.amax(dim=2) + x.mean(dim=2)).relu())


def _renamed(name: str) -> str:
    """A name in the file of weights -> here."""
    for theirs, ours in (
        ("bn0.", ""),
        ("conv.pointwise", "pointwise.weight"),
        ("conv.time_taps", "time.weight"),
        ("conv.freq_taps", "freq.weight"),
        ("conv.bias", "time.bias"),
    ):
        name = name.replace(theirs, ours)
    return name
