import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastsep.batchnorm import fold, is_foldable
from fastsep.syncnorm import SyncBatchNorm2d

pytest.importorskip("asc.processes")  # which the environment of another torch lacks

from work import Parts, in_a_group_of_one, normalise, steps

from asc.processes import Place, run

SPLIT = (3, 2)  # clips in each process; they need not be as many
CASES: list[tuple[torch.dtype, float, dict[str, Any]]] = [
    (torch.float64, 3.0, {}),
    (torch.float64, 3.0, {"momentum": None, "eps": 1e-2}),
    (torch.float64, 3.0, {"affine": False}),
    (torch.float64, 3.0, {"track_running_stats": False}),
    (torch.float32, 1e3, {}),
    (torch.bfloat16, 3.0, {}),
]


def make(dtype: torch.dtype = torch.float64, **options: Any) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(4, dtype=dtype, **options)
    for parameter in bn.parameters():
        nn.init.normal_(parameter)
    return bn


def draw(dtype: torch.dtype = torch.float64, mean: float = 3.0) -> Parts:
    generator = torch.Generator().manual_seed(1)
    shape = 2, 2, sum(SPLIT), 4, 5, 6
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    return [((x + mean).to(dtype), gradient.to(dtype)) for x, gradient in drawn]


@pytest.fixture(scope="module")
def shared() -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """For each of CASES what the two processes found; they are started once."""
    mine: list[list[Any]] = [[], []]
    for dtype, mean, options in CASES:
        split = [tuple(t.split(SPLIT) for t in part) for part in draw(dtype, mean)]
        for rank in (0, 1):
            bn = make(torch.promote_types(dtype, torch.float32), **options)
            mine[rank].append((bn, [(x[rank], gradient[rank]) for x, gradient in split]))
    first, second = run(normalise, [(cases,) for cases in mine])
    return list(zip(first, second, strict=True))


@pytest.mark.parametrize("case", range(4), ids=lambda i: str(CASES[i][2]))
def test_two_processes_are_one_batch(case: int, shared: Any) -> None:
    options = CASES[case][2]
    expected = steps(make(**options), draw())
    first, second = shared[case]
    assert first.keys() == second.keys() == expected.keys()
    for name, whole in expected.items():
        if name == "eval" and not options.get("track_running_stats", True):
            continue  # statistics of what each process is given, as nn.SyncBatchNorm has them
        if name[:1] == "y" or name[:2] == "dx" or name == "eval":
            actual = torch.cat([first[name], second[name]])
        elif name.startswith("d"):
            actual = first[name] + second[name]  # of parameters, which DDP adds up
        else:
            assert torch.equal(first[name], second[name])
            actual = first[name]
        torch.testing.assert_close(actual, whole, rtol=1e-12, atol=1e-12, msg=lambda m: name + m)  # noqa: B023


@pytest.mark.parametrize("case", [4, 5], ids=["float32, far from 0", "bfloat16"])
def test_other_dtypes(case: int, shared: Any) -> None:
    """Rounding of the values' own size, and float32 statistics under half precision."""
    dtype, mean, _ = CASES[case]
    exact = steps(make(), [(x.double(), g.double()) for x, g in draw(dtype, mean)])
    first, second = shared[case]
    actual = torch.cat([first["y0"], second["y0"]])
    assert actual.dtype == dtype and first["running_var"].dtype == torch.float32
    # The mean, x * scale and the shift that it cancels with are rounded; their size is that of
    # mean * weight, and the result's, of up to 4 standard deviations, that of 4 * weight + bias.
    eps, size = torch.finfo(torch.float32).eps, make().weight.abs().max().item()
    bound = 3 * eps * mean * size + torch.finfo(dtype).eps * (4 * size + 3)
    assert (actual.double() - exact["y0"]).abs().max() <= bound
    # Means of two parts, rounded, are off by eps * mean, and so is what lies between them.
    off = (first["running_var"].double() - exact["running_var"]).abs().max()
    assert off <= 2 * eps * mean + 8 * eps


def test_one_process() -> None:
    """Without a group, and in one of a single process, the layer is nn.BatchNorm2d to the bit."""
    parts = draw()
    (alone,) = normalise(Place(), lambda n: None, [(make(), parts)])
    ((grouped,),) = run(in_a_group_of_one, [([(make(), parts)],)])
    for name, expected in steps(make(), parts).items():
        assert torch.equal(alone[name], expected) and torch.equal(grouped[name], expected)


def test_convert() -> None:
    """Every nn.BatchNorm2d, with what it has; nothing that another class makes its own."""

    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(make(momentum=None), nn.Sequential(Own(4), nn.BatchNorm1d(4), make()))
    model[0].eval()
    model[0].weight.requires_grad_(False)
    before, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    assert SyncBatchNorm2d.convert(model) is model
    assert [type(m) for m in model.modules() if isinstance(m, nn.Module)][1:] == [
        SyncBatchNorm2d, nn.Sequential, Own, nn.BatchNorm1d, SyncBatchNorm2d
    ]  # fmt: skip
    assert all(p is before[name] for name, p in model.named_parameters())
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert model[0].momentum is None and not model[0].training and model[1][2].training


def test_folds_in_eval_mode() -> None:
    bn = make()
    steps(bn, draw())
    sync = SyncBatchNorm2d.convert(copy.deepcopy(bn))
    assert isinstance(sync, SyncBatchNorm2d)
    assert is_foldable(sync.eval()) and not is_foldable(sync.train())
    taps = torch.ones(4, 3, dtype=torch.float64)
    for mine, theirs in zip(fold(sync, taps, taps), fold(bn, taps, taps), strict=True):
        assert torch.equal(mine, theirs)


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        SyncBatchNorm2d(4)(torch.zeros(2, 4))
