import pytest
import torch

from asc.complexity import Size, parameter_table, size
from asc.model import Cnn6Sep

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
