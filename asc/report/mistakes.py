"""The worst mistakes of an evaluation, to see and to hear."""

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchaudio.functional import resample

from asc.data import ClipList, fit_length, read_audio
from asc.features import LogMel
from asc.metrics import FloatArray, IntArray, log_losses
from asc.task import CLIP_SAMPLES, SAMPLE_RATE
from asc.threads import in_threads

MOST = 12  # whose excerpts are 5.1 MB as they stand in the page
_EXCERPT_RATE = 16_000  # Hz
_CEILING = 99.8  # percentile of a log-mel that is drawn in the brightest colour
_RANGE = 70  # dB below it that are told apart


@dataclass(frozen=True)
class Mistake:
    """A clip that was taken for another class; picture and audio as data URIs.

    audio: None where it was not asked for.
    """

    index: int
    log_loss: float
    picture: str
    audio: str | None


def worst_mistakes(
    p: FloatArray, y: IntArray, clips: ClipList, *, audio: bool = True
) -> list[Mistake]:
    """The clips that were taken for another class with the largest log losses, those first.

    Args:
        p: (N, K) probabilities.
        y: (N,) labels.
        clips: the clips.
        audio: whether with excerpts: mono, 16 kHz, the 10 s that the network has seen.

    Raises:
        UserError: a clip can no longer be read.
    """
    losses = log_losses(p, y)
    wrong = np.flatnonzero(p.argmax(axis=1) != y)
    worst = wrong[np.argsort(-losses[wrong], kind="stable")][:MOST]
    front_end = LogMel()

    def look(index: int) -> Mistake:
        waveform = read_audio(clips[index].path, max_seconds=CLIP_SAMPLES / SAMPLE_RATE)
        waveform = waveform[:CLIP_SAMPLES]
        with torch.inference_mode():
            picture = _picture(front_end(fit_length(waveform)))
        return Mistake(index, float(losses[index]), picture, _excerpt(waveform) if audio else None)

    with _said_before(), in_threads(look, worst.tolist()) as looked_at:
        return list(looked_at)


@contextmanager
def _said_before() -> Iterator[None]:
    """What is odd about a file was said when it was evaluated."""
    logger = logging.getLogger("asc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _picture(logmel: Tensor) -> str:
    """A log-mel (1, 1, T, 256) as PNG, time to the right, half as many pixels each way."""
    values: NDArray[np.float32] = avg_pool2d(logmel, 2)[0, 0].T.flip(0).numpy()
    top = np.percentile(values, _CEILING)
    levels = np.clip((values - (top - _RANGE)) / _RANGE, 0, 1)
    image = Image.fromarray((255 * levels).astype(np.uint8)).convert("P")
    colors = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    image.putpalette(colors.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return _data_uri("image/png", file)


def _excerpt(waveform: Tensor) -> str:
    """As WAV, the one format that every browser plays."""
    samples = resample(waveform, SAMPLE_RATE, _EXCERPT_RATE).clamp(-1, 1)
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), _EXCERPT_RATE, "PCM_16", format="WAV")
    return _data_uri("audio/wav", file)


def _data_uri(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def names_of(classes: Sequence[str], row: FloatArray, most: int = 3) -> list[tuple[str, float]]:
    """The classes that a clip is most probably of, with their probabilities."""
    return [(classes[k], float(row[k])) for k in np.argsort(-row, kind="stable")[:most]]
