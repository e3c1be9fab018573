import math

import numpy as np
import pytest

from asc.bootstrap import class_means, interval, resampled_sums, score_intervals, units
from asc.metrics import score


def test_units_are_locations_where_all_are_known() -> None:
    known = units(["oslo-2", "lyon-1", "oslo-2"])
    assert (known.of_clip.tolist(), known.count, known.name) == (
        [1, 0, 1],
        2,
        "recording locations",
    )
    partly = units(["oslo-2", None, "oslo-2"])
    assert (partly.of_clip.tolist(), partly.count, partly.name) == ([0, 1, 2], 3, "clips")


def test_a_location_is_drawn_with_all_its_clips() -> None:
    values = np.array([[1.0, 1.0], [1.0, 10.0], [1.0, 100.0]])
    sums = resampled_sums(values, units(["a", "a", "b"]), 50)
    # Of two locations, of two clips and one: both of one, or one of each.
    assert {tuple(row) for row in sums} == {(4, 22), (2, 200), (3, 111)}
    clips = resampled_sums(values, units([None] * 3), 50)
    assert set(clips[:, 0]) == {3} and len({*clips[:, 1]}) > 3


def test_resamples_follow_from_seed_and_units_alone() -> None:
    values = np.random.default_rng(0).integers(100, size=(40, 3)).astype(float)  # exact sums
    chosen = units([None] * 40)
    sums = resampled_sums(values, chosen, seed=1)
    assert np.array_equal(resampled_sums(values[:, :1], chosen, seed=1)[:, 0], sums[:, 0])
    assert not np.array_equal(resampled_sums(values, chosen, seed=2), sums)


def test_many_units_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.ones((40, 1))
    monkeypatch.setattr("asc.bootstrap._AT_ONCE", 100)  # two resamples at once, the last one alone
    assert resampled_sums(values, units([None] * 40), 7).tolist() == 7 * [[40]]


def test_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    means = resampled_sums(values[:, None], units([None] * 400))[:, 0] / 400
    low, high = interval(means)
    error = values.std() / math.sqrt(400)
    # A quantile of 2000 normal resamples has a standard error of 0.06 of theirs.
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    assert interval(np.array([math.nan, 1.0, 1.0])) == (1, 1)


def test_intervals_are_of_the_scores() -> None:
    """Clips that are all alike within their classes leave no doubt: the scores themselves."""
    p = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]] * 20)
    y = np.array([0, 1] * 20)
    found = score_intervals(p, y, units([f"place-{i // 2}" for i in range(40)]))
    scores = score(p, y, ("x", "y", "z"), [None] * 40)
    for name in (
        "log_loss_macro", "log_loss_samples", "accuracy_macro", "accuracy_samples", "ece",
    ):  # fmt: skip
        assert found[name] == pytest.approx([getattr(scores, name)] * 2), name
    assert found["brier"] == pytest.approx([(0.06 + 0.86) / 2] * 2)
    of_class = found["per_class"]
    assert of_class[1] == {
        "log_loss": pytest.approx([-math.log(0.3)] * 2), "accuracy": (0, 0)
    }  # fmt: skip
    assert of_class[2] is None  # no clips


def test_scores_of_few_locations_are_less_sure_than_their_clips_suggest() -> None:
    generator = np.random.default_rng(0)
    of_place = generator.uniform(0.3, 0.9, 20).repeat(30)
    p = np.stack([of_place, 1 - of_place], axis=1)
    y = np.zeros(600, dtype=np.int64)

    def width(locations: list[str | None]) -> float:
        low, high = score_intervals(p, y, units(locations))["log_loss_samples"]
        return high - low

    places = width([f"place-{i // 30}" for i in range(600)])
    assert places > 3 * width([None] * 600)  # sqrt(30) times


def test_one_location_says_nothing_about_others() -> None:
    p, y = np.array([[0.5, 0.5]] * 3), np.array([0, 1, 1])
    assert score_intervals(p, y, units(["oslo-1"] * 3)) == {}


def test_means_over_a_class() -> None:
    sums, counts = class_means(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 2]), 3)
    assert sums.sum(0).tolist() == [1, 0, 6] and counts.sum(0).tolist() == [1, 0, 2]
