import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asc.data import Clip, ClipList
from asc.metrics import score
from asc.report.comparison import clear, compare, spread
from asc.report.predictions import write_predictions

Refused = Callable[..., AbstractContextManager[None]]
Folder = Callable[..., Path]

CLASSES = ("bus", "park", "tram")
NAMES = tuple(f"{CLASSES[i % 3]}-oslo-{i // 4}-{i}-a.wav" for i in range(24))
LABELS = tuple(i % 3 for i in range(24))


def probabilities(seed: int, bias: float = 0.0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    logits[range(24), LABELS] += bias
    return logits.softmax(1).numpy()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """folder(name, p, ...): of an evaluation; run: of the weights, other: entries of scores.json"""
    monkeypatch.chdir(tmp_path)

    def write(
        name: str,
        p: np.ndarray,
        *,
        names: Sequence[str] = NAMES,
        labels: Sequence[int | None] = LABELS,
        classes: Sequence[str] = CLASSES,
        run: dict[str, Any] | None = None,
        **other: Any,
    ) -> Path:
        out = Path(name)
        out.mkdir()
        clips = tuple(Clip(Path(n), label, "a") for n, label in zip(names, labels, strict=True))
        path = out / "predictions.csv"
        write_predictions(path, ClipList((), clips), Path(), classes, torch.from_numpy(p))
        about = {"weights": f"{name}.pt", "data": "d", "run": run, "results": [{"tta": 0}]}
        (out / "scores.json").write_text(json.dumps(about | other))
        return out

    return write


def run(seed: int, preset: str = "ce_tta", **other: Any) -> dict[str, Any]:
    return {"preset": {"name": preset, "epochs": 3}, "seed": seed, **other}


def test_two_systems(folder: Folder) -> None:
    p = probabilities(0), probabilities(1, bias=2)
    found = compare([folder("a", p[0]), folder("b", p[1])])
    a, b = (score(each, LABELS, CLASSES, ["a"] * 24) for each in p)
    assert [system.name for system in found.systems] == ["a", "b"]
    for system, scores in zip(found.systems, (a, b), strict=True):
        for key in ("log_loss_macro", "log_loss_samples", "accuracy_macro", "ece"):
            assert system.scores[key] == [getattr(scores, key)]
        assert system.per_class == {k: row.log_loss for k, row in scores.per_class.items()}
        assert system.per_device == {"a": scores.per_device["a"].log_loss_macro}
    (pair,) = found.differences
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.log_loss == pytest.approx(b.log_loss_macro - a.log_loss_macro)
    assert pair.accuracy == pytest.approx(b.accuracy_macro - a.accuracy_macro)
    assert pair.log_loss_interval is not None and pair.accuracy_interval is not None
    assert pair.log_loss_interval[0] < pair.log_loss < pair.log_loss_interval[1] < 0
    assert clear(pair.log_loss_interval)
    assert (found.clips, found.drawn.count, found.drawn.name) == (24, 6, "recording locations")


def test_pairing_sees_what_intervals_of_each_do_not(folder: Folder) -> None:
    """A system that is a little better on every clip is better, however scores vary over clips."""
    p = probabilities(0, bias=1)
    better = p.copy()
    better[range(24), LABELS] *= 1.05
    better /= better.sum(1, keepdims=True)
    (pair,) = compare([folder("a", p), folder("b", better)]).differences
    assert pair.log_loss_interval is not None and pair.log_loss_interval[1] < 0
    assert pair.log_loss == pytest.approx(-0.03, abs=0.02)


def test_the_order_of_clips_does_not_matter(folder: Folder) -> None:
    p, order = probabilities(0), np.random.default_rng(0).permutation(24)
    shuffled = folder(
        "b", p[order], names=[NAMES[i] for i in order], labels=[LABELS[i] for i in order]
    )
    (pair,) = compare([folder("a", p), shuffled]).differences
    assert (pair.log_loss, pair.accuracy) == pytest.approx((0, 0), abs=1e-15)
    assert not clear(pair.accuracy_interval)


def test_seeds_of_one_preset_are_one_system(folder: Folder) -> None:
    p = [probabilities(seed, bias=seed) for seed in range(3)]
    given = [
        *(folder(f"ce-{seed}", p[seed], run=run(seed)) for seed in range(3)),
        folder("fl-0", p[0], run=run(0, "fl_tta")),
        folder("fl-long", p[1], run={"preset": {"name": "fl_tta", "epochs": 9}, "seed": 1}),
        folder("unknown", p[2]),
        folder("unknown too", p[2]),
    ]  # fmt: skip
    found = compare(given)
    assert [system.name for system in found.systems] == [
        "ce_tta, no TTA", "fl-0", "fl-long", "unknown", "unknown too",
    ]  # fmt: skip
    ce = found.systems[0]
    assert ce.seeds == [0, 1, 2] and [m.folder for m in ce.members] == ["ce-0", "ce-1", "ce-2"]
    each = [score(x, LABELS, CLASSES, ["a"] * 24) for x in p]
    assert ce.scores["log_loss_macro"] == [s.log_loss_macro for s in each]
    mean = np.mean([s.log_loss_macro for s in each])
    assert spread(ce.scores["log_loss_macro"]) == pytest.approx(
        (mean, np.std([s.log_loss_macro for s in each], ddof=1))
    )
    assert ce.per_class["park"] == pytest.approx(
        np.mean([s.per_class["park"].log_loss for s in each])
    )
    assert spread([0.5]) == (0.5, None)
    assert len(found.differences) == 10
    assert found.differences[0].log_loss == pytest.approx(each[0].log_loss_macro - mean)


@pytest.mark.parametrize(
    "other",
    [
        {"run": run(1, keep="best")},
        {"run": run(1), "temperature": 1.3},
        {"run": run(1), "results": [{"tta": 0}, {"tta": 30}]},
        {"run": run(1), "eps": 0.0},
        {"run": run(0)},  # the same run twice has no spread over seeds
        {"run": None},
    ],
)
def test_what_differs_in_more_than_the_seed_is_another_system(
    other: dict[str, Any], folder: Folder
) -> None:
    p = probabilities(0)
    assert len(compare([folder("a", p, run=run(0)), folder("b", p, run=run(1))]).systems) == 1
    assert len(compare([Path("a"), folder("c", p, **other)]).systems) == 2


def test_systems_of_one_preset_that_differ_are_told_apart(folder: Folder) -> None:
    p = probabilities(0)
    given = [folder(f"{keep}-{seed}", p, run=run(seed, keep=keep))
             for keep in ("last", "best") for seed in (0, 1)]  # fmt: skip
    names = [system.name for system in compare(given).systems]
    assert names == ["last-0, last-1", "best-0, best-1"]


def test_one_location_has_no_interval(folder: Folder) -> None:
    names = [f"bus-oslo-1-{i}-a.wav" for i in range(24)]
    given = [folder(name, probabilities(i), names=names) for i, name in enumerate("ab")]
    (pair,) = compare(given).differences
    assert (pair.log_loss_interval, pair.accuracy_interval) == (None, None)
    assert clear(pair.log_loss_interval) is None


def test_other_clips_are_refused_by_name(folder: Folder, refused: Refused) -> None:
    p = probabilities(0)
    first = folder("a", p)
    names = ["other.wav", *NAMES[1:]]
    with refused("b: cannot be compared with a", f"1 are in a alone, such as '{NAMES[0]}'",
                 "1 are in b alone, such as 'other.wav'"):  # fmt: skip
        compare([first, folder("b", p, names=names)])
    with refused("c: cannot be compared with a", "4 are in a alone"):
        compare([first, folder("c", p[:20], names=NAMES[:20], labels=LABELS[:20])])
    with refused("d: cannot", f"'{NAMES[0]}' is 'bus' in the one and 'tram' in the other"):
        compare([first, folder("d", p, labels=[2, *LABELS[1:]])])
    with refused("e: cannot", "classes", "one of them alone has 'bus'"):
        compare([first, folder("e", p, classes=("car", "park", "tram"))])
    with refused("f: cannot", "another order"):
        compare([first, folder("f", p, classes=("park", "bus", "tram"))])
    with refused("g: has clips without a label", NAMES[23]):
        compare([first, folder("g", p, labels=[*LABELS[:23], None])])


def test_what_is_no_evaluation(folder: Folder, refused: Refused) -> None:
    first = folder("a", probabilities(0))
    with refused("nothing to compare"):
        compare([first])
    with refused("x: no such folder", "--out DIR"):
        compare([first, Path("x")])
    Path("empty").mkdir()
    with refused("empty/predictions.csv: no such file"):
        compare([first, Path("empty")])
    other = folder("b", probabilities(0))
    for text in ("", "[]", "{1}", '{"results": []}', '{"weights": "", "data": "", "results": [1]}'):
        (other / "scores.json").write_text(text)
        with refused("b/scores.json: holds no scores"):
            compare([first, other])
    (other / "scores.json").unlink()  # the predictions do
    assert len(compare([first, other]).systems) == 2
