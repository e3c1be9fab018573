"""From samples to logits: what a caller of the whole system waits for."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import asc
import fastsep
from asc.task import CLIP_SAMPLES
from benchmarks import workloads
from benchmarks.measure import measure, widest_isa


@pytest.mark.parametrize("part", ["log-mel", "blocks", "head", "samples to logits"])
def test_latency(benchmark: BenchmarkFixture, part: str) -> None:
    torch.set_num_threads(2)
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

    def extract_exactly() -> torch.Tensor:
        power = extract_wide.mel(samples.double())
        return extract_wide.to_db(power).transpose(1, 2).unsqueeze(1)

    exact = {
        "log-mel": extract_exactly,
        "blocks": lambda: wide.blocks(logmel.double()),
        "head": lambda: wide.head(maps.double()),
        "samples to logits": lambda: wide(extract_exactly()),
    }
    with torch.inference_mode(), fastsep.use_backend("reference"):
        expected = exact[part]()
    measure(benchmark, runs[part], exact=expected, flop=0, isa=widest_isa(), threads=2,
            system="fastsep", case=part, batch=1)  # fmt: skip
