import json
from collections.abc import Callable
from typing import Any

import pytest
from noise import CLIPS

from asc.metrics import brier_scores, expected_calibration_error, log_losses
from asc.prediction import Until
from asc.report.evaluation import DEFINITIONS, describe, device_groups, true_labels
from asc.scoring import score_clips

Evaluated = Any
Evaluate = Callable[..., Evaluated]

PLACES = tuple(f"audio/park-{city}-{i}-0-a.wav" for i, city in enumerate(("oslo", "lyon") * 2))


def test_it_is_plain_json_with_the_keys_of_before(evaluated: Evaluated) -> None:
    content = evaluated.content
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {"weights", "data", "split", "seed", "eps", "precision", "results"} <= set(content)
    by_masks = evaluated.found.scores.items()
    for result, (tta, scores) in zip(content["results"], by_masks, strict=True):
        assert result["tta"] == tta
        assert {key: result[key] for key in scores.to_dict()} == scores.to_dict()
    assert "masks" not in content


def test_network_and_run(evaluated: Evaluated) -> None:
    content = evaluated.content
    assert content["classes"] == list(evaluated.model.classes)
    assert (content["run"], content["temperature"]) == (evaluated.model.run, 2.0)
    assert content["complexity"]["num_bytes"] == 2 * content["complexity"]["parameters"]
    assert {"asc", "torch", "python"} <= set(content["versions"])
    assert set(content["definitions"]) == set(DEFINITIONS) <= set(content["results"][0])


def test_scores_by_city_and_kind_of_device(evaluated: Evaluated) -> None:
    result = evaluated.content["results"][1]
    assert {name: row["count"] for name, row in result["per_city"].items()} == {
        "lyon": 1,
        "oslo": 2,
    }
    groups = {name: row["count"] for name, row in result["per_group"].items()}
    assert groups == {"seen in training": 2, "not seen in training": 1, "real": 1, "simulated": 2}
    s5 = result["per_device"]["s5"]
    assert result["per_group"]["not seen in training"] == s5


@pytest.mark.parametrize(
    ("device", "groups"),
    [
        ("a", ("seen in training", "real")),
        ("d", ("not seen in training", "real")),
        ("s", ("not seen in training", "real")),
        ("s3", ("seen in training", "simulated")),
        ("s10", ("not seen in training", "simulated")),
        ("zoom", (None, None)),
        (None, (None, None)),
    ],
)
def test_groups_of_devices(device: str | None, groups: tuple[str | None, str | None]) -> None:
    assert device_groups(device) == groups


def test_calibration_before_and_after_temperature_and_masks(evaluated: Evaluated) -> None:
    found, y = evaluated.found, true_labels(evaluated.clips)
    ways = evaluated.content["calibration"]
    assert [(way["tta"], way["calibrated"]) for way in ways] == [(0, False), (0, True), (3, True)]
    before = (found.logits * 2).softmax(1).numpy()
    each = [before, *(p.numpy() for p in found.probabilities.values())]
    for way, p in zip(ways, each, strict=True):
        assert way["ece"] == expected_calibration_error(p, y)
        assert way["log_loss_samples"] == log_losses(p, y).mean()
        assert way["brier"] == brier_scores(p, y).mean()
        assert sum(bin["count"] for bin in way["bins"]) == len(y)
        # The bins are what the error is made of.
        full = [bin for bin in way["bins"] if bin["count"]]
        gaps = [bin["count"] * abs(bin["accuracy"] - bin["confidence"]) for bin in full]
        assert sum(gaps) / len(y) == pytest.approx(way["ece"])
        assert {b["accuracy"] for b in way["bins"] if not b["count"]} <= {None}


def test_a_network_that_is_not_calibrated_has_no_before(evaluate: Evaluate) -> None:
    content = evaluate(PLACES, (0, 1, 2, 3), tta=0).content
    assert [(way["tta"], way["calibrated"]) for way in content["calibration"]] == [(0, False)]


def test_intervals_are_over_places_where_names_tell_them(
    evaluated: Evaluated, evaluate: Evaluate
) -> None:
    places = evaluate(PLACES, (0, 1, 2, 3), tta=0).content
    for content, units, count in (
        (places, "recording locations", 4),
        (evaluated.content, "clips", 5),
    ):
        assert (content["bootstrap"]["units"], content["bootstrap"]["count"]) == (units, count)
    for result in (*places["results"], *evaluated.content["results"]):
        for name in DEFINITIONS:
            low, high = result["intervals"][name]
            assert low <= high
        low, high = result["intervals"]["log_loss_samples"]
        assert low <= result["log_loss_samples"] <= high
        assert set(result["intervals"]["per_class"]) == set(evaluated.model.classes)
    one = evaluate(PLACES[:1], (2,), tta=0).content
    assert one["results"][0]["intervals"] == {}


def test_masks_of_every_clip_where_they_differ(evaluated: Evaluated) -> None:

    model, clips = evaluated.model, evaluated.clips
    found = score_clips(model, CLIPS, clips, tta=Until(0.4))
    content = describe({}, found, clips, model)
    assert content["results"][1]["tta"] == {"tolerance": 0.4, "most": 1000}
    assert list(content["masks"].values()) == found.masks
    assert all("\udce9" not in name for name in content["masks"])
