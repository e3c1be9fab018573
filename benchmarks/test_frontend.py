"""From samples and files to results: what a caller of the whole system waits for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import asc
import fastsep
from asc.data import load_clip, open_logmels, unlabelled
from asc.task import CLIP_SAMPLES, HOP, N_FFT, SAMPLE_RATE
from benchmarks import workloads
from benchmarks.measure import measure, widest_isa
from fastsep.eager import to_eager


@pytest.mark.parametrize("threads", [2, 1])
@pytest.mark.parametrize("system", ["torchaudio", "torch.stft alone"])
def test_other_log_mels(benchmark: BenchmarkFixture, system: str, threads: int) -> None:
    """What asc.LogMel is beside: all of it by torchaudio, and the FFT that both do."""
    torch.set_num_threads(threads)
    samples = torch.randn(1, CLIP_SAMPLES) * 0.1
    extract = {dtype: asc.LogMel().to(dtype) for dtype in (torch.float32, torch.float64)}

    def fft(samples: Tensor) -> Tensor:
        window = extract[samples.dtype].mel.spectrogram.window
        return torch.view_as_real(
            torch.stft(samples, N_FFT, HOP, window=window, return_complex=True)
        )

    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "torchaudio": lambda samples: by_torchaudio(extract[samples.dtype], samples),
        "torch.stft alone": fft,
    }
    run = runs[system]
    exact = run(samples.double())
    measure(benchmark, lambda: run(samples), exact=exact, flop=0, isa=widest_isa(),
            threads=threads, system=system, case="log-mel", batch=1)  # fmt: skip


@pytest.mark.parametrize("threads", [2, 1])
@pytest.mark.parametrize("part", ["log-mel", "blocks", "head", "samples to logits"])
def test_latency(benchmark: BenchmarkFixture, part: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model, extract = workloads.network(), asc.LogMel()
    samples = torch.randn(1, CLIP_SAMPLES) * 0.1
    logmel = extract(samples)
    with torch.inference_mode():
        maps = model.blocks(logmel)
    runs = {
        "log-mel": lambda: extract(samples),
        "blocks": lambda: model.blocks(logmel),
        "head": lambda: model.head(maps),
        "samples to logits": lambda: model(extract(samples)),
    }
    wide, extract_wide = workloads.network().double(), asc.LogMel().double()

    def extract_exactly() -> Tensor:
        return by_torchaudio(extract_wide, samples.double())

    exact = {
        "log-mel": extract_exactly,
        "blocks": lambda: wide.blocks(logmel.double()),
        "head": lambda: wide.head(maps.double()),
        "samples to logits": lambda: wide(extract_exactly()),
    }
    with torch.inference_mode(), fastsep.use_backend("reference"):
        expected = exact[part]()
    measure(benchmark, runs[part], exact=expected, flop=0, isa=widest_isa(),
            threads=threads, system="fastsep", case=part, batch=1)  # fmt: skip


class Exactly(list[tuple[Tensor, int]]):
    """Items whose TTA masks follow from names."""

    names: Sequence[str]


@pytest.mark.parametrize(
    ("system", "tta"), [("fastsep", 0), ("fastsep", 30), ("soundfile, torchaudio, eager", 0)]
)
def test_files_to_probabilities(
    benchmark: BenchmarkFixture, tmp_path: Path, system: str, tta: int
) -> None:
    """As `asc predict` goes through 24-bit WAV files, and one file and layer after the other."""
    torch.set_num_threads(2)
    model, clips = workloads.network(), 6 if tta == 0 else 2
    paths = [tmp_path / f"{i}.wav" for i in range(clips)]
    for i, path in enumerate(paths):
        noise = np.random.default_rng(i).normal(0, 0.1, CLIP_SAMPLES)
        soundfile.write(path, noise, SAMPLE_RATE, subtype="PCM_24")
    eager, extract = to_eager(model), asc.LogMel()

    def one_by_one() -> Tensor:
        samples = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
        return torch.cat([eager(by_torchaudio(extract, s[None])).softmax(1) for s in samples])

    def as_predict_does() -> Tensor:
        with open_logmels(unlabelled(paths)) as items:
            return asc.probabilities(model, items, tta=tta)

    wide = asc.LogMel().double()
    exact = Exactly([(by_torchaudio(wide, load_clip(p)[None].double())[0], -1) for p in paths[:2]])
    exact.names = [path.name for path in paths[:2]]
    expected = asc.probabilities(workloads.network().double(), exact, tta=tta)
    measure(benchmark, as_predict_does if system == "fastsep" else one_by_one, exact=expected,
            flop=0, isa=widest_isa(), threads=2, system=system, batch=clips,
            case=f"WAV files to probabilities, {tta} TTA")  # fmt: skip


def by_torchaudio(extract: asc.LogMel, samples: Tensor) -> Tensor:
    return extract.to_db(extract.mel(samples)).transpose(1, 2).unsqueeze(1)
