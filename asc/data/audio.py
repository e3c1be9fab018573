"""Audio files in, fixed-length 44.1 kHz mono clips out."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from asc.data.wav import count_plain_wav, read_plain_wav
from asc.errors import UserError, note
from asc.features import is_bounded
from asc.task import CLIP_SAMPLES, N_FFT, SAMPLE_RATE

# The resampling filter holds about (rate in / gcd) * (rate out / gcd) float32 values: 1 GiB here.
MAX_RESAMPLING_TAPS = 2**28
UNKNOWN = 2**63 - 1  # frames of a file that was streamed, as libsndfile gives them
_BLOCK = 2**16
# libsndfile's log of a file that ends before its header says so.
_CUT = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
STREAMED_BYTES = 0x7FFF0000  # and above: what programs write that do not know yet


def read_audio(path: str | Path, *, max_seconds: float | None = None) -> Tensor:
    """Reads an audio file as mono at 44.1 kHz.

    Any format and sample type libsndfile knows (WAV of 16, 24, 32 bit and float, FLAC, Ogg, ...);
    integers are scaled to +-1, channels are averaged, other sample rates are resampled
    (windowed sinc, torchaudio). What was cut short, is silent or hardly there is noted
    (`asc.errors.note`).

    Args:
        path: the file.
        max_seconds: read no more than this from the start; None reads everything.

    Returns:
        (samples,) float32.

    Raises:
        UserError: the file is missing, a directory, unreadable or corrupt, empty, holds NaN,
            infinite or huge samples, or has a sample rate that cannot be resampled.
    """
    path = Path(path)
    with reading(path):
        rate, samples, log = _read(path, max_seconds)
    if samples.size == 0:
        raise UserError(f"{path}: holds no audio samples")
    waveform = as_mono(path, samples)
    note_cut(path, log)
    if len(waveform) < N_FFT:
        note(f"{path}: holds only {len(waveform)} samples, which are repeated to fill a clip")
    elif waveform.min() == waveform.max():
        note(f"{path}: is silent")
    check_rate(path, rate)
    return resampled(waveform, rate)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, what keeps a file from being read as audio becomes a UserError that names it."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a directory, expected an audio file")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        yield
    # TypeError: soundfile wants extra arguments for headerless .raw files.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", "") or str(error)
        raise UserError(f"{path}: cannot be read as audio ({_one_line(reason)})") from error


def as_mono(name: str | Path, samples: NDArray[np.float32]) -> Tensor:
    """The mean of the channels: (n,) of (n,) or (n, channels).

    Raises:
        UserError: samples that are NaN, infinite or huge.
    """
    waveform = torch.from_numpy(samples)
    waveform = waveform.mean(dim=1) if waveform.dim() > 1 else waveform
    if not is_bounded(waveform):
        raise UserError(f"{name}: holds NaN, infinite or huge samples")
    return waveform


def check_rate(name: str | Path, rate: int) -> None:
    """UserError for a sample rate that `resampled` would need too much memory for."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    if (rate // divisor) * (SAMPLE_RATE // divisor) > MAX_RESAMPLING_TAPS:
        raise UserError(
            f"{name}: sample rate {rate} Hz has too small a common divisor with {SAMPLE_RATE} Hz "
            "to resample; convert the file to 44.1 kHz first"
        )


def resampled(waveform: Tensor, rate: int) -> Tensor:
    """A waveform of so many samples a second at 44.1 kHz."""
    return waveform if rate == SAMPLE_RATE else resample(waveform, rate, SAMPLE_RATE)


def is_longer(path: str | Path, seconds: float) -> bool:
    """Whether a file says in its header that it lasts longer; UserError if it cannot be read."""
    path = Path(path)
    held = count_plain_wav(path)
    if held is not None:
        return held > math.ceil(seconds * SAMPLE_RATE)
    with reading(path), soundfile.SoundFile(os.fsencode(path)) as file:
        return bool(UNKNOWN != file.frames > math.ceil(seconds * file.samplerate))


def fit_length(waveform: Tensor, samples: int = CLIP_SAMPLES) -> Tensor:
    """A waveform made exactly so many samples long.

    Longer ones are cropped to their start. Shorter ones are repeated from their start until they
    are long enough: zero padding would put a block of -100 dB into the log-mel, which no training
    clip has and the network's pooling over time would see.

    Args:
        waveform: (length,), at least one sample; the result shares its memory if it is long enough.

    Raises:
        ValueError: not one-dimensional, or empty.
    """
    if waveform.ndim != 1 or waveform.shape[0] == 0:
        raise ValueError(f"waveform must be (samples,) and not empty, got {tuple(waveform.shape)}")
    if waveform.shape[0] < samples:
        waveform = waveform.repeat(math.ceil(samples / waveform.shape[0]))
    return waveform[:samples]


def load_clip(path: str | Path) -> Tensor:
    """The first 10 s of an audio file, (441000,) float32.

    See `read_audio` for what is read and raised, `fit_length` for shorter files.
    """
    return fit_length(read_audio(path, max_seconds=CLIP_SAMPLES / SAMPLE_RATE))


def _read(path: Path, max_seconds: float | None) -> tuple[int, NDArray[np.float32], str]:
    """(sample rate, samples with or without channels, libsndfile's log)."""

    def frames(rate: int) -> int:
        return -1 if max_seconds is None else math.ceil(max_seconds * rate)

    plain = read_plain_wav(path, frames(SAMPLE_RATE))
    if plain is not None:
        return SAMPLE_RATE, plain, ""
    # Bytes: soundfile encodes strings, which not all names and locales allow.
    with soundfile.SoundFile(os.fsencode(path)) as file:
        rate, log = file.samplerate, file.extra_info
        if file.frames == UNKNOWN:
            return rate, read_streamed(file, frames(rate)), log
        return rate, file.read(frames(rate), dtype="float32", always_2d=True), log


def read_streamed(file: soundfile.SoundFile, frames: int) -> NDArray[np.float32]:
    """Reads so many frames, -1 for all, of a file that does not say how many it has.

    soundfile seeks to where it has read to, which fails at an end that is not known, and then does
    not say how much it has read.
    """
    blocks = []
    while frames:
        length = _BLOCK if frames < 0 else min(_BLOCK, frames)
        block = np.full((length, file.channels), np.nan, dtype=np.float32)
        with suppress(soundfile.SoundFileError):
            file.read(out=block)
        held = block[~np.isnan(block[:, 0])]
        blocks.append(held)
        if len(held) < length:
            break
        frames -= length if frames > 0 else 0
    return np.concatenate(blocks)


def note_cut(path: Path, log: str) -> None:
    """Says so if a file ends before its header says, by libsndfile's log."""
    cut = _CUT.search(log)
    if cut and int(cut[2]) < int(cut[1]) < STREAMED_BYTES:
        note(f"{path}: is cut short, it holds {cut[2]} of {cut[1]} bytes of audio")


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
