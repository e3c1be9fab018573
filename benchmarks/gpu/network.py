"""The whole network: inference, a training step, and evaluation under 30 masks a clip."""

import copy
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from asc.augment import apply_stripes
from asc.device import Precision
from asc.eager import EagerTwin, eager_pool
from asc.evaluation import evaluate
from asc.features import N_MELS
from asc.model import Cnn6Sep
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
from fastsep import SepConvBlock

BF16_PRODUCTS = "fastsep, compute=bf16"  # float32 maps, bfloat16 products
GRAPH = ", CUDA graph"
TTA = 30
EVALUATE: dict[str, Precision] = {"IEEE": "float32", "TF32": "tf32", "bf16": "bf16"}
TTA_BYTES = 2**34  # what a batch may take: all masks of a clip at once, for every system


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
                          rank=0 if system != COMPILED else 1 if batch == BATCHES[0] else 3)
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
                          rank=1 if system == COMPILED else 2 if batch == 1 else 0)
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
                          rank=3 if system == COMPILED else 0)
                )  # fmt: skip
    return cases


@lru_cache(maxsize=1)
def network() -> Cnn6Sep:
    return workloads.network()


def inference(batch: int, precision: str, system: str) -> Prepared:
    graph = system.endswith(GRAPH)
    system = system.removesuffix(GRAPH)
    model = copy.deepcopy(network()).to("cuda")
    twin = EagerTwin(model)  # before the seed: making its layers draws random numbers
    torch.manual_seed(0)
    with settings("IEEE"), torch.no_grad():
        expected = twin(_clips(batch)[:8])
    if system == BF16_PRODUCTS:
        model.blocks.compute = "bf16"
        x_dtype = torch.float32
    else:
        x_dtype = DTYPES[precision]
        model.to(x_dtype)
    run = _variant(model, EagerTwin(model), system)

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
    twin = TrainableTwin(model)
    trained = model if system == FASTSEP else twin
    run = _variant(model, twin, system)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=1e-5)
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
    """`asc.evaluation.evaluate` as users call it; the others' bf16 is autocast's."""
    model = copy.deepcopy(network()).to("cuda")
    twin = MaskedTwin(model).eval()
    dataset = [(x, 0) for x in workloads.clips(batch)]

    def probabilities(model: Any, precision: str) -> Tensor:
        return evaluate(model, dataset, tta=TTA, device="cuda", precision=EVALUATE[precision],
                        max_batch_bytes=TTA_BYTES)  # fmt: skip

    with settings("IEEE"):
        expected = probabilities(twin, "IEEE")
    run = _variant(model, twin, system)
    autocast = precision == "bf16" and system != FASTSEP

    def call() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            return probabilities(run, precision)

    return Prepared(call, [()], expected=[expected])


def _variant(ours: nn.Module, twin: nn.Module, system: str) -> nn.Module:
    """The network as `system` runs it."""
    if system in (FASTSEP, BF16_PRODUCTS):
        return ours
    if system == CHANNELS_LAST:
        assert isinstance(twin.blocks, nn.Module)
        twin.blocks.register_forward_pre_hook(_as_channels_last)
    if system == COMPILED:
        return torch.compile(twin, fullgraph=True, dynamic=False, mode="max-autotune")  # type: ignore[return-value]
    return twin


def _as_channels_last(blocks: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The same values, with strides that say so: of one channel, NCHW is channels_last too, and
    convolutions would make NCHW of it."""
    n, _, frames, bins = inputs[0].shape
    return (inputs[0].reshape(n, frames, bins, 1).contiguous().permute(0, 3, 1, 2),)


def _clips(batch: int) -> Tensor:
    """Noise, loud or low: of noise all alike an untrained network's logits are all alike."""
    loudness = 4 * torch.rand(batch, 1, 1, 1, device="cuda")
    return loudness * torch.randn(batch, 1, workloads.FRAMES, N_MELS, device="cuda")


class MaskedTwin(EagerTwin):
    """The folded network in PyTorch's layers, with what `evaluate` asks of a network."""

    def __init__(self, model: Cnn6Sep) -> None:
        super().__init__(model)
        self.specaugment, self.classes = model.specaugment, model.classes

    def forward(self, logmel: Tensor, stripes: Tensor | None = None) -> Tensor:
        x = logmel * self.affine.scale + self.affine.shift
        return self.head(self.blocks(x if stripes is None else apply_stripes(x, stripes)))


class TrainableTwin(nn.Module):
    """The network before folding in PyTorch's own layers."""

    def __init__(self, model: Cnn6Sep) -> None:
        super().__init__()
        self.network = copy.deepcopy(model)
        self.blocks = nn.Sequential(*(TrainableBlock(block) for block in model.blocks))
        del self.network.blocks

    def forward(self, logmel: Tensor) -> Tensor:
        x = self.network.bn0(logmel.transpose(1, 3)).transpose(1, 3)
        return self.network.mlp(eager_pool(self.blocks(x)))


class TrainableBlock(nn.Module):
    def __init__(self, block: SepConvBlock) -> None:
        super().__init__()
        conv = block.conv
        cin, c, d = conv.in_channels, conv.out_channels, conv.dilation
        self.pointwise = nn.Conv2d(cin, c, 1, bias=False)
        self.time = nn.Conv2d(c, c, (3, 1), padding=(d, 0), dilation=d, groups=c, bias=False)
        self.freq = nn.Conv2d(c, c, (1, 3), padding=(0, d), dilation=d, groups=c, bias=False)
        self.bn, self.pool = copy.deepcopy(block.bn), nn.AvgPool2d(block.pool)
        for layer, weight in (
            (self.pointwise, conv.pointwise[:, :, None, None]),
            (self.time, conv.time_taps[:, None, :, None]),
            (self.freq, conv.freq_taps[:, None, None, :]),
        ):
            layer.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        z = self.pointwise(x)
        assert self.bn is not None
        return self.pool(torch.relu(self.bn(self.time(z) + self.freq(z))))
