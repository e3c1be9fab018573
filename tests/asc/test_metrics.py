import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from asc.metrics import (
    brier_scores,
    confidence_bins,
    confusion_matrix,
    expected_calibration_error,
    log_losses,
    score,
)

CLASSES = ("cat", "dog", "owl")
P = np.array(
    [
        [0.5, 0.3, 0.2],  # cat, right
        [0.2, 0.7, 0.1],  # cat, wrong
        [0.1, 0.8, 0.1],  # cat, wrong
        [0.3, 0.6, 0.1],  # dog, right
    ]
)
Y = np.array([0, 0, 0, 1])
DEVICES = ["s1", "a", "s1", "a"]


def test_scores_by_hand() -> None:
    scores = score(P, Y, CLASSES, DEVICES)
    losses = [-math.log(p) for p in (0.5, 0.2, 0.1, 0.6)]
    cat = sum(losses[:3]) / 3
    assert scores.count == 4
    assert scores.log_loss_samples == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert scores.log_loss_macro == pytest.approx((cat + losses[3]) / 2, rel=1e-12)  # no owls
    assert scores.accuracy_samples == pytest.approx(2 / 4)
    assert scores.accuracy_macro == pytest.approx((1 / 3 + 1) / 2)
    # Each clip is alone in its bin: |1 - 0.5|, 0.7, 0.8, |1 - 0.6|.
    assert scores.ece == pytest.approx((0.5 + 0.7 + 0.8 + 0.4) / 4)

    assert list(scores.per_class) == list(CLASSES)
    assert scores.per_class["cat"].count == 3
    assert scores.per_class["cat"].log_loss == pytest.approx(cat)
    assert scores.per_class["cat"].accuracy == pytest.approx(1 / 3)
    assert scores.per_class["owl"].count == 0
    assert math.isnan(scores.per_class["owl"].log_loss)

    assert list(scores.per_device) == ["a", "s1"]
    a, s1 = scores.per_device["a"], scores.per_device["s1"]
    assert (a.count, s1.count) == (2, 2)
    assert a.log_loss_macro == pytest.approx((losses[1] + losses[3]) / 2)
    assert a.accuracy == pytest.approx(0.5)
    assert s1.log_loss_samples == pytest.approx((losses[0] + losses[2]) / 2)


def test_json_has_no_nan() -> None:
    plain = score(P, Y, CLASSES, DEVICES).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["per_class"]["owl"] == {"count": 0, "log_loss": None, "accuracy": None}


def test_zero_probability_is_clipped() -> None:
    scores = score(np.array([[0.0, 1.0]]), np.array([0]), ("x", "y"), [None])
    assert scores.log_loss_samples == pytest.approx(-math.log(1e-15), rel=1e-12)
    assert scores.per_device == {}


def test_tensors_and_half_precision() -> None:
    expected = score(P, Y, CLASSES, DEVICES)
    got = score(torch.tensor(P).half(), torch.tensor(Y), CLASSES, DEVICES)
    # float16 rounds to 2**-11 relative; the loss moves by at most twice that (value and row sum).
    assert got.log_loss_samples == pytest.approx(expected.log_loss_samples, abs=2**-10)


def test_unknown_devices_come_last() -> None:
    scores = score(P, Y, CLASSES, ["zoom", "s6", None, "b"])
    assert list(scores.per_device) == ["b", "s6", "zoom"]


def test_calibration_error_of_a_calibrated_and_a_boastful_classifier() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    confidence = rng.uniform(0.5, 1, n)
    p = np.stack([confidence, 1 - confidence], axis=1)
    y = (rng.random(n) > confidence).astype(np.int64)  # class 0 with its own probability
    # Each of at most 8 bins errs by less than 4 standard errors, sqrt(1/4 / (n / 8)).
    assert expected_calibration_error(p, y) < 4 * math.sqrt(0.25 * 8 / n)
    sure = np.tile([1.0, 0.0], (n, 1))
    assert expected_calibration_error(sure, y) == pytest.approx(np.mean(y == 1))


def test_bin_edges_belong_to_the_lower_bin() -> None:
    # 3 clips of confidence 0.6 = 9/15 and one just above: bins (8/15, 9/15] and (9/15, 10/15].
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.61, 0.39]])
    y = np.array([0, 1, 0])
    expected = (abs(1 - 1.2) + abs(1 - 0.61)) / 3
    assert expected_calibration_error(p, y) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p", "y", "devices", "match"),
    [
        (P[:, :2], Y, DEVICES, r"\(N, 3\)"),
        (P[0], Y, DEVICES, r"\(N, 3\)"),
        (P, Y[:3], DEVICES, "disagree"),
        (P, Y, DEVICES[:3], "disagree"),
        (P[:0], Y[:0], [], "no clips"),
        (P, np.array([0, 0, 0, 3]), DEVICES, "labels"),
        (P, np.array([0, 0, 0, -1]), DEVICES, "labels"),
        (np.where(P == 0.5, np.nan, P), Y, DEVICES, "finite"),
        (P * 0.9, Y, DEVICES, "sum to one"),
        (P + np.array([0.6, -0.3, -0.3]), Y, DEVICES, "sum to one"),
    ],
)
def test_errors(p: np.ndarray, y: np.ndarray, devices: list[str | None], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        score(p, y, CLASSES, devices)


def test_float_labels() -> None:
    with pytest.raises(TypeError, match="integers"):
        score(P, Y.astype(float), CLASSES, DEVICES)


def test_confusion_matrix_has_a_row_for_each_true_class() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.9, 0.1, 0.0]])
    expected = [[1, 2, 0], [0, 0, 0], [1, 0, 0]]
    assert confusion_matrix(p, [0, 0, 0, 2]).tolist() == expected


def test_accuracies_and_calibration_error_are_those_of_torchmetrics() -> None:
    """Where the definitions agree: a clip of every class, no confidence on a bin's edge. It sums in
    float32, so the last of 500 sums may be off by 500 * 6e-8."""
    generator = torch.Generator().manual_seed(3)
    p = (3 * torch.randn(500, 4, generator=generator, dtype=torch.float64)).softmax(1)
    y = torch.randint(4, (500,), generator=generator)
    ours = score(p, y, "abcd", [None] * 500)
    assert (15 * p.amax(1)).frac().min() > 0 and len(y.unique()) == 4
    for value, average in ((ours.accuracy_macro, "macro"), (ours.accuracy_samples, "micro")):
        theirs = multiclass_accuracy(p, y, 4, average=average)  # type: ignore[arg-type]
        assert value == pytest.approx(theirs.item(), abs=3e-5)
    theirs = multiclass_calibration_error(p, y, 4, n_bins=15, norm="l1")
    assert ours.ece == pytest.approx(theirs.item(), abs=3e-5)


def test_what_each_clip_adds_to_the_scores() -> None:
    losses, scores = log_losses(P, Y), score(P, Y, CLASSES, DEVICES)
    assert losses.tolist() == pytest.approx([-math.log(p) for p in (0.5, 0.2, 0.1, 0.6)])
    assert losses.mean() == scores.log_loss_samples
    # (0.5 - 1)^2 + 0.3^2 + 0.2^2 and so on; two classes of which the wrong one is certain: 2.
    assert brier_scores(P, Y).tolist() == pytest.approx([0.38, 1.14, 1.46, 0.26])
    assert brier_scores(np.array([[1.0, 0.0]]), np.array([1])).tolist() == [2.0]
    p = np.array([[0.6, 0.4], [0.61, 0.39], [1.0, 0.0]])
    assert confidence_bins(p).tolist() == [8, 9, 14]
