import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asc.checkpoint import load_model

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--out", "x.pt"), "--split"),
        (("--split", "train"), "--out"),
        (("--split", "test", "--out", "x.pt"), "--split"),
        (("--split", "train", "--out", "/no/such/folder/x.pt"), "/no/such/folder/x.pt"),
        (("--split", "train", "--out", "x.pt", "--tta", "auto"), "--tta"),
    ],
)
def test_bad_arguments(options: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, "calibrate", "w", "d", *options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, folders: Path) -> Path:
    """Training clips of three classes of the weights, one of which sounds like another."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "evaluate"):
        (root / split).mkdir()
        for name, clips in (("bus", "hum"), ("metro", "hum"), ("tram", "whistle")):
            (root / split / name).symlink_to(folders / split / clips)
    return root


def nll(asc_: Asc, *arguments: object) -> float:
    code, output, _ = asc_("evaluate", *arguments, "--split", "train", "--json", "-")
    assert code == 0
    scores = json.loads(output)["results"][-1]["log_loss_samples"]
    assert isinstance(scores, float)
    return scores


def test_calibrated_weights_score_as_promised(
    weights: Path, data: Path, tmp_path: Path, asc_: Asc, one_line: OneLine
) -> None:
    sure = tmp_path / "sure.pt"  # an untrained network doubts everything
    content = torch.load(weights, weights_only=True)
    for name in ("fc2.weight", "fc2.bias"):
        content["parameters"][name] *= 20
    torch.save(content, sure)

    out = tmp_path / "calibrated.pt"
    options = "--tta", 4, "--seed", 7
    code, output, error = asc_("calibrate", sure, data, "--split", "train", "--out", out, *options)
    assert (code, error) == (0, "")
    assert "6 clips of the split 'train'" in output
    row = next(line for line in output.splitlines() if "log-likelihood" in line)
    before, after = (float(cell) for cell in row.split("\t")[1:])
    assert after < before

    model = load_model(out)
    assert f"temperature {model.temperature:.4f}" in output
    # Tables print 3 digits; weights are rounded to float16, logits of a few units by thousandths.
    assert nll(asc_, sure, data, *options) == pytest.approx(before, abs=1e-3)
    allowed = "--allow-calibration-clips"
    assert nll(asc_, out, data, *options, allowed) == pytest.approx(after, abs=5e-3)

    code, output, error = asc_("evaluate", out, data, "--split", "train")
    assert (code, output) == (2, "")
    one_line(error, "calibrated.pt", "6 clips", allowed)
    assert asc_("evaluate", out, data, "--split", "evaluate")[0] == 0


def test_what_cannot_be_calibrated_writes_nothing(
    weights: Path, folders: Path, tmp_path: Path, asc_: Asc, one_line: OneLine
) -> None:
    for split in ("train", "evaluate"):
        (tmp_path / "one" / split).mkdir(parents=True)
        (tmp_path / "one" / split / "bus").symlink_to(folders / split / "hum")
    out = tmp_path / "calibrated.pt"
    code, output, error = asc_(
        "calibrate", weights, tmp_path / "one", "--split", "train", "--out", out
    )
    assert (code, output) == (2, "")
    assert "single class" in error.splitlines()[-1]
    assert not out.exists()
