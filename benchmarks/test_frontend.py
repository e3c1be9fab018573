"""From samples to logits: what a caller of the whole system waits for."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import asc
import fastsep
from asc.task import CLIP_SAMPLES, HOP, N_FFT
from benchmarks import workloads
from benchmarks.measure import measure, widest_isa


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


def by_torchaudio(extract: asc.LogMel, samples: Tensor) -> Tensor:
    return extract.to_db(extract.mel(samples)).transpose(1, 2).unsqueeze(1)
