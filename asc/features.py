"""The front end: a waveform in, a log-mel spectrogram out."""

import torch
from torch import Tensor, nn
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from asc.task import HOP, N_FFT, N_MELS, SAMPLE_RATE

# Above this the float32 power spectrum could overflow: (1024 * 1e15)**2 is still below 3.4e38.
MAX_AMPLITUDE = 1e15


def is_bounded(waveform: Tensor) -> bool:
    """Whether no sample is NaN, infinite or beyond `MAX_AMPLITUDE`."""
    return waveform.numel() == 0 or bool(waveform.abs().max() <= MAX_AMPLITUDE)


class LogMel(nn.Module):
    """Log-mel spectrogram of 44.1 kHz mono audio, as in the DCASE 2021 Task 1A report.

    Periodic Hann window of 2048 samples, hop 1024, centred with reflect padding; power spectrum;
    256 mel filters from 0 to 22 050 Hz (Slaney scale and area norm); `10 log10(max(S, 1e-10))`.

    The module has no parameters and an empty `state_dict`; `.to(device)` moves it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram(
            SAMPLE_RATE,
            n_fft=N_FFT,
            hop_length=HOP,
            f_min=0.0,
            f_max=SAMPLE_RATE / 2,
            n_mels=N_MELS,
            power=2.0,
            norm="slaney",
            mel_scale="slaney",
        )
        self.to_db = AmplitudeToDB("power", top_db=None)
        for module in self.modules():  # constants, not state: keep them out of checkpoints
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer.float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Computes log-mels in dB (reference 1.0, floor -100 dB).

        Args:
            waveform: (N, samples) or (samples,) float32, full scale at +-1.

        Returns:
            (N, 1, T, 256) float32 with `T = 1 + samples // 1024`; N = 1 for 1-D input.

        Raises:
            TypeError: not a float32 tensor.
            ValueError: wrong number of dimensions, too short for the reflect padding (fewer than
                1025 samples), or samples that are NaN, infinite or beyond 1e15.
        """
        if not isinstance(waveform, Tensor) or waveform.dtype != torch.float32:
            got = waveform.dtype if isinstance(waveform, Tensor) else type(waveform).__name__
            raise TypeError(f"waveform must be a float32 tensor, got {got}")
        if waveform.ndim not in (1, 2):
            raise ValueError(
                f"waveform must be (samples,) or (N, samples), got {tuple(waveform.shape)}"
            )
        if waveform.shape[-1] <= N_FFT // 2:
            raise ValueError(
                f"waveform must have at least {N_FFT // 2 + 1} samples, got {waveform.shape[-1]}"
            )
        if not is_bounded(waveform):
            raise ValueError("waveform must be finite: it holds NaN, infinite or huge samples")
        waveform = torch.atleast_2d(waveform)
        with torch.autocast(waveform.device.type, enabled=False):  # bf16 would cost whole dB
            power = self.mel(waveform)
            return self.to_db(power).transpose(1, 2).unsqueeze(1)
