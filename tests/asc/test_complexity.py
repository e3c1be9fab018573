import json
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asc.complexity import (
    SECOND_FRAMES,
    Limit,
    Size,
    limits,
    macs_per_second,
    parameter_table,
    peak_memory,
    size,
    summary,
    total_macs,
)
from asc.features import LogMel
from asc.model import Cnn6Sep
from fastsep.eager import to_eager

# The report's table, from the layers' shapes: (layer, output, values at test time, in training).
TABLE = [
    ("BN-mel", (1, 431, 256), 2 * 256, 4 * 256),
    ("block 1, 1 -> 64", (64, 215, 128), (1 + 6 + 1) * 64, (1 + 6 + 4) * 64),
    ("block 2, 64 -> 128", (128, 107, 64), (64 + 6 + 1) * 128, (64 + 6 + 4) * 128),
    ("block 3, 128 -> 128", (128, 53, 32), (128 + 6 + 1) * 128, (128 + 6 + 4) * 128),
    ("block 4, 128 -> 128", (128, 26, 16), (128 + 6 + 1) * 128, (128 + 6 + 4) * 128),
    ("global pooling", (128,), 0, 0),
    ("MLP 128 -> 128 -> 10", (10,), 129 * 128 + 129 * 10, 129 * 128 + 129 * 10),
]


@pytest.mark.parametrize("fold", [False, True])
def test_parameter_table_is_the_reports(fold: bool) -> None:
    model = Cnn6Sep()
    rows = parameter_table(model.folded() if fold else model)
    assert [(r.layer, r.shape, r.test_time, r.training_time) for r in rows] == TABLE
    assert sum(row.test_time for row in rows) == 62_474
    assert sum(row.training_time for row in rows) == 64_330


@pytest.mark.parametrize("fold", [False, True])
def test_size(fold: bool) -> None:
    model = Cnn6Sep()
    model.fc1.weight.data[:2, :3] = 1e-9  # rounds to 0
    model.fc2.bias.data.zero_()
    counted = size(model.folded() if fold else model)
    expected = model.folded().half().parameters()
    nonzero = sum(int(parameter.count_nonzero()) for parameter in expected)
    assert counted == Size(62_474, nonzero, 124_948)
    assert 0 < counted.nonzero <= 62_474 - 16
    assert not model.is_folded and model.fc1.weight.dtype == torch.float32


def flop_counts(model: nn.Module, frames: int) -> dict[str, int]:
    """What PyTorch's own counter says of the network in PyTorch's own layers, module by module."""
    eager = to_eager(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        eager(torch.zeros(1, 1, frames, 256))
    return {
        name.partition(".")[2]: sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
    }


@pytest.mark.parametrize("classes", [10, 3])
@pytest.mark.parametrize("frames", [431, 44, 17])
def test_macs_are_those_of_pytorchs_counter(classes: int, frames: int) -> None:
    model = Cnn6Sep(classes).eval()
    rows = parameter_table(model, frames)
    counted = flop_counts(model, frames)
    blocks = [row for row in rows if row.layer.startswith("block")]
    assert [2 * row.macs for row in blocks] == [counted[f"blocks.{i}"] for i in range(4)]
    assert 2 * rows[-1].macs == counted["fc1"] + counted["fc2"]
    assert 2 * total_macs(rows) == counted[""]


def test_work_of_a_clip_by_hand() -> None:
    """Positions times weights: 1x1 and two times three taps."""
    positions, channels = [431 * 256, 215 * 128, 107 * 64, 53 * 32], [1, 64, 128, 128, 128]
    maps = [n * c for n, c in zip([*positions, 26 * 16], channels, strict=True)]
    rows = parameter_table(Cnn6Sep())
    expected = [
        n * (cin + 6) * cout for n, (cin, cout) in zip(positions, pairwise(channels), strict=True)
    ]
    assert [row.macs for row in rows] == [0, *expected, 0, 128 * 128 + 128 * 10]
    assert macs_per_second(rows) == pytest.approx(total_macs(rows) / 10)
    assert [row.values for row in rows[1:5]] == [a + b for a, b in pairwise(maps)]
    assert peak_memory(rows) == 4 * (maps[1] + maps[2])
    assert peak_memory(rows, torch.float16) == 2 * (maps[1] + maps[2])


def test_a_second_has_as_many_frames_as_its_log_mel() -> None:
    assert LogMel()(torch.zeros(1, 44_100)).shape[-2] == SECOND_FRAMES


def test_limits() -> None:
    """The float16 network keeps to the bytes of all editions, and not to the MACs since 2022."""
    model = Cnn6Sep()
    model.fc1.weight.data[:2, :3] = 0
    model.bn0.bias.data.fill_(0.5)  # type: ignore[union-attr]  # no zeros but those
    for block in model.blocks:
        block.bn.bias.data.fill_(0.5)
    halved = model.folded().half().parameters()
    nonzero = sum(int(parameter.count_nonzero()) for parameter in halved)
    macs = total_macs(parameter_table(model, 44))
    found = limits(model)
    assert [(limit.value, limit.most, limit.passed) for limit in found] == [
        (2 * nonzero, 131_072, True),
        (124_948, 128_000, True),
        (macs, 30_000_000, False),
    ]
    assert nonzero <= 62_474 - 6
    assert [limit.editions[:4] for limit in found] == ["2021", "2022", "2022"]
    wide = limits(Cnn6Sep(3000))
    assert not wide[0].passed and not wide[1].passed


@pytest.mark.parametrize(("value", "passed"), [(5, True), (6, False)])
def test_the_limit_itself_is_allowed(value: int, passed: bool) -> None:
    assert Limit("2021", "x", "B", value, 5).passed == passed


def test_summary_is_plain_numbers() -> None:
    model = Cnn6Sep()
    content = json.loads(json.dumps(summary(model)))
    rows = parameter_table(model)
    assert [layer["macs"] for layer in content["layers"]] == [row.macs for row in rows]
    assert content["size"]["num_bytes"] == 124_948
    assert content["macs"]["clip"] == total_macs(rows)
    assert content["macs"]["second"] == macs_per_second(rows)
    assert content["peak_activation_memory"] == {
        "float32": peak_memory(rows), "float16": peak_memory(rows) // 2
    }  # fmt: skip
    assert [limit["passed"] for limit in content["limits"]] == [x.passed for x in limits(model)]
