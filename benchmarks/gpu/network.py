"""The whole network: inference, a training step, and evaluation under 30 masks a clip."""

import copy
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from asc.compute import Precision
from asc.model import Cnn6Sep
from asc.prediction import probabilities
from asc.task import FRAMES, N_MELS
from benchmarks import workloads
from benchmarks.gpu.layers import CHANNELS_LAST, COMPILED, FASTSEP, SYSTEMS, clip_bytes
from benchmarks.gpu.results import Case
from benchmarks.gpu.timing import (
    BATCHES,
    DTYPES,
    PRECISIONS,
    Prepared,
    graphed,
    rotated,
    settings,
    timed,
)
from benchmarks.workloads import LAYERS
from fastsep.eager import to_eager

BF16_PRODUCTS = "fastsep, compute=bf16"  # float32 maps, bfloat16 products
GRAPH = ", CUDA graph"
TTA = 30
EVALUATE: dict[str, Precision] = {"IEEE": "float32", "TF32": "tf32", "bf16": "bf16"}
TTA_BYTES = 2**34  # what a batch may take: all masks of a clip at once, for every system


def rank(system: str, batch: int) -> int:
    """What tells most first, see `layers.rank`."""
    if system == COMPILED:
        return 1 if batch == BATCHES[0] else 3
    return {CHANNELS_LAST: 4, CHANNELS_LAST + GRAPH: 4}.get(system, 2 if batch == 1 else 0)


def network_bytes(itemsize: int) -> float:
    """Every block reads its input and writes its pooled output once: 23 MB in float32."""
    return sum(clip_bytes("block", layer, itemsize) for layer in LAYERS.values())


def network_cases() -> list[Case]:
    cases = []
    for batch in BATCHES:
        for precision in PRECISIONS:
            systems = [*SYSTEMS]
            if precision == "bf16":
                systems.append(BF16_PRODUCTS)
            if batch == 1:
                systems += [system + GRAPH for system in systems if system != COMPILED]
            for system in systems:
                dtype = torch.float32 if system == BF16_PRODUCTS else DTYPES[precision]
                cases.append(
                    timed("network", batch, precision, system,
                          partial(inference, batch, precision, system),
                          flop=workloads.network_flop(batch),
                          nbytes=batch * network_bytes(dtype.itemsize),
                          rank=rank(system, batch))
                )  # fmt: skip
    return cases


def training_cases() -> list[Case]:
    """Floors: three passes (forward, gradients of maps, gradients of weights), float32 maps."""
    cases = []
    for batch in BATCHES:
        for precision in PRECISIONS:
            for system in SYSTEMS:
                if system == COMPILED and batch != 32:
                    continue  # a compilation costs a minute; 32 is what the presets train with
                cases.append(
                    timed("training step", batch, precision, system,
                          partial(training, batch, precision, system),
                          flop=3 * workloads.network_flop(batch),
                          nbytes=3 * batch * network_bytes(DTYPES[precision].itemsize),
                          rank=rank(system, batch))
                )  # fmt: skip
    return cases


def tta_cases() -> list[Case]:
    """Clips go through one by one with all their masks, so a batch of 256 costs eight of 32; maps
    count as float32."""
    cases = []
    for batch in (32, 1):
        for precision in PRECISIONS:
            for system in SYSTEMS:
                if system == COMPILED and batch == 1:
                    continue
                cases.append(
                    timed(f"{TTA}-TTA evaluation", batch, precision, system,
                          partial(evaluation, batch, precision, system),
                          flop=TTA * workloads.network_flop(batch),
                          nbytes=TTA * batch * network_bytes(4),
                          rank=rank(system, batch))
                )  # fmt: skip
    return cases


@lru_cache(maxsize=1)
def network() -> Cnn6Sep:
    return workloads.network()


def inference(batch: int, precision: str, system: str) -> Prepared:
    graph = system.endswith(GRAPH)
    system = system.removesuffix(GRAPH)
    model = copy.deepcopy(network()).to("cuda")
    torch.manual_seed(0)
    with torch.no_grad():
        expected = to_eager(model).double()(_clips(batch)[:8].double())
    if system == BF16_PRODUCTS:
        model.blocks.compute = "bf16"
        x_dtype = torch.float32
    else:
        x_dtype = DTYPES[precision]
        model.to(x_dtype)
    run = _variant(model, system)

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return run(x)

    torch.manual_seed(0)
    inputs = rotated(lambda: (_clips(batch).to(x_dtype),))
    if graph:
        return graphed(call, inputs)
    return Prepared(call, inputs, expected=[expected])


def training(batch: int, precision: str, system: str) -> Prepared:
    """Forward, cross entropy, backward and AdamW as in the presets; bf16 by autocast."""
    torch.manual_seed(0)
    model = Cnn6Sep().to("cuda").train()
    run = _variant(model, system)
    optimizer = torch.optim.AdamW(run.parameters(), lr=1e-3, weight_decay=1e-5)
    targets = torch.randint(10, (batch,), device="cuda")

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(run(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Prepared(call, rotated(lambda: (_clips(batch),)))


def evaluation(batch: int, precision: str, system: str) -> Prepared:
    """`asc.probabilities` as users call it; the others' bf16 is autocast's. What is right is IEEE
    float32 here."""
    model = copy.deepcopy(network()).to("cuda")
    dataset = [(x, 0) for x in workloads.clips(batch)]

    def evaluate(model: Any, precision: str) -> Tensor:
        return probabilities(model, dataset, tta=TTA, device="cuda", precision=EVALUATE[precision],
                             max_batch_bytes=TTA_BYTES)  # fmt: skip

    with settings("IEEE"):
        expected = evaluate(to_eager(model), "IEEE")
    run = _variant(model, system)
    autocast = precision == "bf16" and system != FASTSEP

    def call() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            return evaluate(run, precision)

    return Prepared(call, [()], expected=[expected])


def _variant(model: Cnn6Sep, system: str) -> nn.Module:
    """The network as `system` runs it."""
    if system in (FASTSEP, BF16_PRODUCTS):
        return model
    twin = to_eager(model)
    assert isinstance(twin, Cnn6Sep)
    if system == CHANNELS_LAST:
        twin.blocks[0].register_forward_pre_hook(_as_channels_last)
    if system == COMPILED:
        return torch.compile(twin, fullgraph=True, dynamic=False, mode="max-autotune")  # type: ignore[return-value]
    return twin


def _as_channels_last(block: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The same values, with strides that say so: of one channel, NCHW is channels_last too, and
    convolutions would make NCHW of it."""
    n, _, frames, bins = inputs[0].shape
    return (inputs[0].reshape(n, frames, bins, 1).contiguous().permute(0, 3, 1, 2),)


def _clips(batch: int) -> Tensor:
    """Noise, loud or low: of noise all alike an untrained network's logits are all alike."""
    loudness = 4 * torch.rand(batch, 1, 1, 1, device="cuda")
    return loudness * torch.randn(batch, 1, FRAMES, N_MELS, device="cuda")
