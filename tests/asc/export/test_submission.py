from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import melscale_fbanks

from asc.checkpoint import load_model, save_folded
from asc.data import load_clip
from asc.export import submission
from asc.features import LogMel
from asc.model import Cnn6Sep

Wav = Callable[..., Path]


def test_mel_filters_are_torchaudios() -> None:
    expected = melscale_fbanks(1025, 0.0, 22_050.0, 256, 44_100, "slaney", "slaney")
    # torchaudio computes frequencies up to 22 050 Hz in float32, of triangles from 50 Hz wide.
    assert (submission.mel_filters() - expected).abs().max() < 1e-4 * expected.max()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, wav: Wav) -> list[Path]:
    """Short, long, and of two channels."""
    root = tmp_path_factory.mktemp("files")
    short, long = wav(root / "short.wav", seconds=0.7), wav(root / "long.wav", seconds=11)
    noise = np.random.default_rng(0).normal(0, 0.1, (100_000, 2))
    soundfile.write(root / "two.flac", noise, 44_100)
    return [short, long, root / "two.flac"]


def test_logits_are_those_of_asc(files: list[Path], model: Cnn6Sep, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    save_folded(model, weights)
    logits, classes = submission.predict(
        [str(file) for file in files], ["a"] * 3, model_file_path=str(weights)
    )
    assert classes == list(model.classes)
    expected = load_model(weights)(LogMel()(torch.stack([load_clip(file) for file in files])))
    assert [row.shape for row in logits] == [(3,)] * 3
    assert (torch.stack(logits) - expected).abs().max() < 1e-4 * expected.abs().max()

    network = submission.load_model(str(weights))
    assert submission.get_model_for_device(network, "s4") is network
    (given,) = submission.load_inputs([str(files[1])], ["a"], network)
    assert given.shape == (1, 1, 431, 256)
    assert torch.equal(network(given)[0], logits[1])
    # What the challenge counts: bytes of the parameters as they are held.
    held = sum(p.numel() * p.element_size() for p in network.parameters())
    assert held == 2 * sum(p.numel() for p in model.parameters()) < 128_000


def test_other_sample_rates_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(8000), 8000)
    with pytest.raises(ValueError, match=r"x\.wav: 8000 samples at 8000 Hz, expected 44100 Hz"):
        submission.load_audio(str(tmp_path / "x.wav"))
