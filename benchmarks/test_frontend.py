"""From samples and files to results: what a caller of the whole system waits for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import asc
import fastsep
from asc.augment import apply_stripes
from asc.compute import Engine
from asc.data import load_clip, open_logmels, unlabelled
from asc.model import Cnn6Sep, MelAffine
from asc.prediction import draw_masks
from asc.task import CLIP_SAMPLES, FRAMES, HOP, N_FFT, N_MELS, SAMPLE_RATE
from benchmarks import workloads
from benchmarks.measure import measure, widest_isa
from benchmarks.peers import PEERS
from fastsep.eager import to_eager


@pytest.mark.parametrize("threads", [2, 1])
@pytest.mark.parametrize("system", ["torchaudio", "torch.stft alone"])
def test_other_log_mels(benchmark: BenchmarkFixture, system: str, threads: int) -> None:
    """What asc.LogMel is beside: all of it by torchaudio, and PyTorch's FFT by itself."""
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


OTHERS = {
    "soundfile, torchaudio, eager": "eager, NCHW",
    "soundfile, torchaudio, ONNX Runtime": "ONNX Runtime",
}  # their networks, see `peers`
ENGINES: dict[str, Engine] = {"fastsep": "shared", "fastsep, copy by copy": "batched"}


@pytest.mark.parametrize("tta", [0, 30])
@pytest.mark.parametrize("system", [*ENGINES, *OTHERS])
def test_files_to_probabilities(
    benchmark: BenchmarkFixture, tmp_path: Path, system: str, tta: int
) -> None:
    """24-bit WAV files as `asc predict` goes through them, and by others one file, mask and layer
    after the other, as the report's own code does."""
    torch.set_num_threads(2)
    model, clips = workloads.network(), 6 if tta == 0 else 2
    paths = [tmp_path / f"{i}.wav" for i in range(clips)]
    for i, path in enumerate(paths):
        noise = np.random.default_rng(i).normal(0, 0.1, CLIP_SAMPLES)
        soundfile.write(path, noise, SAMPLE_RATE, subtype="PCM_24")

    def as_predict_does() -> Tensor:
        with open_logmels(unlabelled(paths)) as items:
            return asc.probabilities(model, items, tta=tta, engine=ENGINES[system])

    wide = asc.LogMel().double()
    exact = Exactly([(by_torchaudio(wide, load_clip(p)[None].double())[0], -1) for p in paths[:2]])
    exact.names = [path.name for path in paths[:2]]
    expected = asc.probabilities(workloads.network().double(), exact, tta=tta)
    run = as_predict_does if system in ENGINES else one_by_one(model, paths, OTHERS[system], tta)
    measure(benchmark, run, exact=expected, flop=0, isa=widest_isa(), threads=2, system=system,
            batch=clips, case=f"WAV files to probabilities, {tta} TTA",
            at_least=5 if tta else 20)  # fmt: skip


def one_by_one(model: Cnn6Sep, paths: list[Path], peer: str, tta: int) -> Callable[[], Tensor]:
    """The same probabilities, each file and mask by itself."""
    network, extract = AfterBatchNorm(model).eval(), asc.LogMel()
    x = torch.empty(1, 1, FRAMES, N_MELS)
    forward = PEERS[peer](network, x.zero_(), 2)  # always of what x holds

    def probabilities(inputs: Tensor) -> Tensor:
        rows = []
        for each in inputs:
            x.copy_(each[None])
            result = forward()
            first = result if isinstance(result, Tensor) else torch.as_tensor(result[0])  # type: ignore[index]
            rows.append(first.softmax(1))
        return torch.cat(rows).mean(0)

    def run() -> Tensor:
        rows = []
        for path in paths:
            samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
            logmel = network.normalised(by_torchaudio(extract, samples[None]))
            if tta:
                drawn = draw_masks(model.specaugment, tta, FRAMES, N_MELS, 0, path.name)
                logmel = apply_stripes(logmel.expand(tta, -1, -1, -1), torch.cat(list(drawn)))
            rows.append(probabilities(logmel))
        return torch.stack(rows)

    return run


class AfterBatchNorm(nn.Module):
    """A network in PyTorch's own layers, from where masks are applied."""

    def __init__(self, model: Cnn6Sep) -> None:
        super().__init__()
        network = to_eager(model)
        assert isinstance(network, Cnn6Sep) and isinstance(network.bn0, MelAffine)
        self.network, self.affine = network, network.bn0

    def normalised(self, logmel: Tensor) -> Tensor:
        return logmel * self.affine.scale + self.affine.shift

    def forward(self, x: Tensor) -> Tensor:
        return self.network.head(self.network.blocks(x))


def by_torchaudio(extract: asc.LogMel, samples: Tensor) -> Tensor:
    return extract.to_db(extract.mel(samples)).transpose(1, 2).unsqueeze(1)
