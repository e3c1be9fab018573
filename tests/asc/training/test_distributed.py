"""Runs whose batches two processes share."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from work import train_in_float64

from asc.cli.app import main
from asc.data import write_synthetic
from asc.errors import UserError
from asc.files import make_folder
from asc.processes import Place, run
from asc.training.run import Environment, fit
from asc.training.settings import Settings, get_preset
from asc.training.sharing import EpochShuffle, check_shares, join

CLASSES = ("fog", "rain", "snow")
# What processes draw for themselves is left out: dropout, partners of MixUp.
PRESET = replace(get_preset("ce_tta"), epochs=2, batch_size=4, time_width=5, dropout=0.0)


def clips(n: int, seed: int) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 1, 16, 256, generator=generator, dtype=torch.float64)
    return [(15 * x - 60 + 10 * (i % 3), i % 3) for i, x in enumerate(noise)]


def in_float64(out: Path, devices: int) -> dict[str, Any]:
    """Two epochs of three steps -> last.ckpt, and the curves that were logged."""
    make_folder(out)
    settings = Settings(PRESET, seed=1, sync_batch_norm=True)
    work = clips(13, 0), clips(5, 1), CLASSES, settings, out, "cpu", 0, 0
    if devices == 1:
        try:
            train_in_float64(Place(), lambda n: None, *work)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        run(train_in_float64, [work] * devices)
    logged = EventAccumulator(str(out / "tensorboard")).Reload()
    curves = {
        name: [event.value for event in logged.Scalars(name)]
        for name in ("train/loss_epoch", "val/log_loss", "val/accuracy")
    }
    return torch.load(out / "last.ckpt", weights_only=True) | {"curves": curves}


def test_two_processes_follow_one(tmp_path: Path) -> None:
    """Synchronised, they do what one does, up to rounding.

    AdamW steps by lr g / (|g| + 1e-8). Where g should vanish it is rounding, of 1e-16 of gradients
    of about 1: the step is then off by lr * 1e-16 / 1e-8, 1e-11 each. Six steps, with the growth of
    an error in a network of as many layers, stay below 1e-8; without
    --sync-batch-norm weights differ by more than 1e-4.
    """
    one = in_float64(tmp_path / "one", 1)
    two = in_float64(tmp_path / "two", 2)
    for name, expected in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], expected, rtol=1e-8, atol=1e-8)
    assert two["epoch"] == one["epoch"] == 1 and two["global_step"] == one["global_step"] == 6
    for name, curve in one["curves"].items():  # which TensorBoard keeps in float32
        assert len(curve) == 2
        torch.testing.assert_close(two["curves"][name], curve, rtol=1e-6, atol=1e-6)


def test_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written once, it is said once, and a finished run is extended by the two."""
    data, out = tmp_path / "data", tmp_path / "run"
    write_synthetic(data, clips_per_scene=2, seconds=0.2)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo's remarks
    given = ["train", str(data), "--out", str(out), "--device", "cpu", "--devices", "2"]
    new = ["--batch-size", "4", "--epochs", "1", "--sync-batch-norm"]
    assert main([*given, *new]) == 0
    output, error = capfd.readouterr()
    assert output.count("last epoch, 1:") == output.count("folded.pt: weights") == 1
    assert "Traceback" not in error
    files = {path.name for path in out.iterdir()}
    assert files == {"config.json", "best.ckpt", "last.ckpt", "folded.pt", "tensorboard"}
    assert len(list((out / "tensorboard").glob("events.*"))) == 1
    config = json.loads((out / "config.json").read_text())
    assert config["devices"] == 2 and config["sync_batch_norm"] is True
    assert main([*given, "--resume", "--epochs", "2"]) == 0
    content = torch.load(out / "last.ckpt", weights_only=True)
    assert content["epoch"] == 1 and json.loads((out / "config.json").read_text())["devices"] == 2
    # Of the network that loads everywhere, whatever it was trained with.
    assert all(not name.startswith("model.module") for name in content["state_dict"])


def test_shares_of_batches() -> None:
    """In order, they are the batches that one process would have."""
    whole = list(EpochShuffle(11, 4, 1, 0))
    first, second = (list(EpochShuffle(11, 4, 1, 0, Place(r, 2, r, 2))) for r in (0, 1))
    assert [*first[:2], *second[:2], *first[2:], *second[2:]] == whole and len(whole) == 8
    assert len(EpochShuffle(11, 4, 1, 0, Place(0, 2, 0, 2))) == len(first) == 4
    later = EpochShuffle(11, 4, 1, 0)
    later.set_epoch(1)
    assert list(later) != whole and sorted(whole) == sorted(set(whole))


@pytest.mark.parametrize(
    ("devices", "device", "message"),
    [
        (0, "cpu", "devices must be at least 1, got 0"),
        (2, "cuda", "2 devices were asked for and PyTorch sees 1 GPU: "),
        (3, "cpu", r"a batch of 4 .* by 3 devices: .* that 3 divides \(3\)"),
        (8, "cpu", r"a batch of 4 .* by 8 devices: .* that 8 divides \(8\)"),
    ],
)
def test_devices_that_cannot_train_together(
    devices: int, device: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    out, settings = tmp_path / "run", Settings(PRESET)
    with pytest.raises(UserError, match=message):
        fit(clips(5, 0), clips(2, 1), CLASSES, settings, out, device=device, devices=devices)  # type: ignore[arg-type]
    assert not out.exists()
    check_shares(2, settings)


def test_places_outlast_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a run under torchrun asks again which process it is in."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    Environment().teardown()
    assert os.environ["WORLD_SIZE"] == "2"


def test_devices_beside_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asc.training.sharing.torchrun_place", lambda: Place(0, 2, 0, 2))
    with pytest.raises(UserError, match="torchrun has started 2 processes: leave out --devices"):
        join(4, "cpu", Settings(PRESET))


def test_another_number_of_devices_is_noted(
    tmp_path: Path, train: Callable[..., Any], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    train(out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "devices": 2}))
    train(out, resume=True)
    assert "2 devices have trained so far, 1 go on" in caplog.text
