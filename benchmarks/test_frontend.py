"""From samples to logits: what a caller of the whole system waits for."""

import pytest
import torch

import asc
from asc.features import CLIP_SAMPLES
from benchmarks import workloads
from benchmarks.conftest import Measure, widest_isa


@pytest.mark.parametrize("part", ["log-mel", "blocks", "tail", "samples to logits"])
def test_latency(measure: Measure, part: str) -> None:
    torch.set_num_threads(2)
    model, extract = workloads.network(), asc.LogMel()
    samples = torch.randn(1, CLIP_SAMPLES) * 0.1
    logmel = extract(samples)
    with torch.inference_mode():
        maps = model.blocks(logmel)
    runs = {
        "log-mel": lambda: extract(samples),
        "blocks": lambda: model.blocks(logmel),
        "tail": lambda: model.head(maps),
        "samples to logits": lambda: model(extract(samples)),
    }
    measure(runs[part], flop=0.0, isa=widest_isa(), threads=2, system="fastsep", case=part,
            batch=1)  # fmt: skip
