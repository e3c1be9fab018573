"""The front end: a waveform in, a log-mel spectrogram out."""

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from asc.task import HOP, N_FFT, N_MELS, SAMPLE_RATE
from fastsep import SparseFilters, log_mel, sparse_filters

# Above this the float32 power spectrum could overflow: (1024 * 1e15)**2 is still below 3.4e38.
MAX_AMPLITUDE = 1e15


def is_bounded(waveform: Tensor) -> bool:
    """Whether no sample is NaN, infinite or beyond `MAX_AMPLITUDE`."""
    if waveform.numel() == 0:
        return True
    low, high = torch.aminmax(waveform.detach())
    return bool(torch.maximum(-low, high) <= MAX_AMPLITUDE)


_MEL_FILTERS: list[SparseFilters] = []


def _mel_filters() -> SparseFilters:
    """On the CPU, where they stay; made once, as that takes as long as the log-mels of some clips.

    Not at import: that would start PyTorch's threads, which a process forked later waits for and
    does not have.
    """
    if _MEL_FILTERS:
        return _MEL_FILTERS[0]
    with torch.device("cpu"), torch.inference_mode(False):
        filters = sparse_filters(
            melscale_fbanks(
                N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE, "slaney", "slaney"
            ).float()
        )
    if type(filters.weights) is Tensor:  # not of a fake tensor mode
        _MEL_FILTERS.append(filters)
    return filters


class LogMel(nn.Module):
    """Log-mel spectrogram of 44.1 kHz mono audio, as in the DCASE 2021 Task 1A report.

    Periodic Hann window of 2048 samples, hop 1024, centred with reflect padding; power spectrum;
    256 mel filters from 0 to 22 050 Hz (Slaney scale and area norm); `10 log10(max(S, 1e-10))`.

    On a CPU, where no gradients are wanted, it is one pass of `fastsep`; elsewhere torchaudio
    computes. They agree to the rounding of float32.

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
        self._filters = _mel_filters()
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
        if len(waveform) == 0:
            return waveform.new_empty(0, 1, 1 + waveform.shape[1] // HOP, N_MELS)
        with torch.autocast(waveform.device.type, enabled=False):  # bf16 would cost whole dB
            if self._has_one_pass(waveform):
                window = self.mel.spectrogram.window
                return log_mel(waveform, self._filters, window=window, hop_length=HOP).unsqueeze(1)
            power = self.mel(waveform)
            return self.to_db(power).transpose(1, 2).unsqueeze(1)

    def _has_one_pass(self, waveform: Tensor) -> bool:
        window = self.mel.spectrogram.window
        plain = all(t.is_cpu and t.dtype == torch.float32 for t in (waveform, window))
        wants_gradients = torch.is_grad_enabled() and waveform.requires_grad
        return plain and not wants_gradients and not torch.jit.is_tracing()  # of any length
