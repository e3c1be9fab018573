import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from asc.augment import SpecAugment
from asc.checkpoint import load_model, load_trainable
from asc.errors import UserError
from asc.prediction import MAX_BATCH_BYTES, batch_size
from asc.training import run
from asc.training.callbacks import KeepBestAndLast, validated
from asc.training.module import SceneClassifier
from asc.training.run import check_new_run, fit, fit_data
from asc.training.settings import Settings, read_settings

CLASSES = ("fog", "rain", "snow")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Any]) -> Path:
    out = tmp_path_factory.mktemp("training") / "run"
    train(out)
    return out


def test_run_folder(finished: Path, settings: Settings) -> None:
    files = {path.name for path in finished.iterdir()}
    assert files == {"config.json", "best.ckpt", "last.ckpt", "folded.pt", "tensorboard"}
    assert list((finished / "tensorboard").glob("events.out.tfevents*"))
    config = json.loads((finished / "config.json").read_text())
    assert config["preset"]["name"] == "ce_mu_tta" and config["preset"]["epochs"] == 3
    assert config["seed"] == 1 and config["classes"] == list(CLASSES)
    assert config["clips"] == {"train": 10, "validation": 5}
    assert config["versions"].keys() >= {"asc", "python", "torch", "lightning"}
    assert read_settings(finished) == settings
    folded, best = load_model(finished / "folded.pt"), load_model(finished / "best.ckpt")
    assert folded.classes == best.classes == CLASSES
    assert folded.specaugment == best.specaugment == SpecAugment(5, 16, 2)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_folded_weights_are_of_the_epoch_asked_for(
    keep: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., Any],
    settings: Settings,
) -> None:
    class FirstIsBest(KeepBestAndLast):
        def on_train_epoch_end(self, *arguments: Any) -> None:
            super().on_train_epoch_end(*arguments)
            self.best = -1.0

    monkeypatch.setattr(run, "KeepBestAndLast", FirstIsBest)
    monkeypatch.setattr(FirstIsBest, "state_key", "KeepBestAndLast")
    assert Settings().keep == "last"
    train(tmp_path, replace(settings, keep=keep))
    kept, other = (load_model(tmp_path / f"{name}.ckpt").state_dict() for name in
                   (("last", "best") if keep == "last" else ("best", "last")))  # fmt: skip
    for name, tensor in load_model(tmp_path / "folded.pt").state_dict().items():
        assert torch.equal(tensor, kept[name].half().float()), name
        assert not torch.equal(tensor, other[name].half().float()), name
    best, last = (validated(tmp_path / f"{name}.ckpt") for name in ("best", "last"))
    assert best and last and (best.epoch, last.epoch) == (1, 3)
    assert 0 <= best.accuracy <= 1 and best.log_loss != last.log_loss


def test_last_batch_is_dropped_and_the_schedule_ends(finished: Path, settings: Settings) -> None:
    content = torch.load(finished / "last.ckpt", weights_only=True)
    assert content["global_step"] == 3 * (10 // 4)
    assert content["lr_schedulers"][0]["_last_lr"] == [settings.preset.min_lr]


def test_a_seed_gives_the_same_weights_again(
    finished: Path, tmp_path: Path, train: Callable[..., Any], settings: Settings
) -> None:
    first = load_trainable(finished / "last.ckpt").state_dict()
    assert same(first, train(tmp_path / "again"))
    assert not same(first, train(tmp_path / "other", replace(settings, seed=2)))


@pytest.mark.parametrize("epoch", [0, 1])
def test_resumed_run_ends_as_if_never_interrupted(
    epoch: int,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., Any],
) -> None:
    step = SceneClassifier.training_step

    def interrupted(self: SceneClassifier, batch: Any, batch_idx: int) -> Tensor:
        if self.current_epoch == epoch and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SceneClassifier, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "folded.pt").exists()
    monkeypatch.undo()
    moved = tmp_path / "moved"
    os.rename(tmp_path / "run", moved)
    resumed = train(moved, resume=True)
    assert same(resumed, load_trainable(finished / "last.ckpt").state_dict())
    best = load_trainable(moved / "best.ckpt").state_dict()
    assert same(best, load_trainable(finished / "best.ckpt").state_dict())
    assert same(resumed, train(moved, resume=True))  # nothing left to do


def test_runs_are_not_overwritten(
    finished: Path,
    tmp_path: Path,
    make_clips: Callable[..., Any],
    train: Callable[..., Any],
    settings: Settings,
) -> None:
    before = (finished / "last.ckpt").stat()
    with pytest.raises(UserError, match="is not empty"):
        train(finished)
    with pytest.raises(UserError, match="other settings"):
        train(finished, replace(settings, seed=7), resume=True)
    with pytest.raises(UserError, match="other classes"):
        fit(make_clips(10), make_clips(5), ("x", "y", "z"), settings, finished, resume=True)
    assert (finished / "last.ckpt").stat() == before
    with pytest.raises(UserError, match="no run to resume"):
        train(tmp_path, resume=True)
    (tmp_path / "config.json").write_text('{"preset": ')
    with pytest.raises(UserError, match=r"config\.json: is not"):
        read_settings(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        train(tmp_path / "config.json")
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / ".config.json.123.tmp").write_text('{"pre')  # killed while it was written
    check_new_run(killed)
    (killed / "other.tmp").touch()
    with pytest.raises(UserError, match="is not empty"):
        check_new_run(killed)


def test_a_run_goes_on_with_its_data_alone(
    finished: Path,
    tmp_path: Path,
    wav: Callable[..., Path],
    make_clips: Callable[..., Any],
    settings: Settings,
) -> None:
    """Wherever that lies now, which config.json then says."""
    with pytest.raises(UserError, match="other data"):
        fit(make_clips(9), make_clips(5), CLASSES, settings, finished, resume=True)
    data, moved = tmp_path / "data", tmp_path / "moved"
    for name in ("a", "b"):
        for i in range(3):
            wav(data / name / f"{i}.wav", hertz=100 + i, seconds=0.1)
    settings = Settings(replace(settings.preset, epochs=1, batch_size=2))
    out = tmp_path / "run"
    fit_data(data, settings, out)
    data.rename(moved)
    fit_data(moved, settings, out, resume=True)
    config = json.loads((out / "config.json").read_text())
    assert config["data"] == str(moved) and config["extended"] == []
    wav(moved / "a" / "0.wav", seconds=0.2)
    with pytest.raises(UserError, match=rf"other data \({moved}"):
        fit_data(moved, settings, out, resume=True)
    (moved / "a" / "0.wav").rename(moved / "a" / "3.wav")
    with pytest.raises(UserError, match="other data"):
        fit_data(moved, settings, out, resume=True)


def test_a_finished_run_can_be_extended(
    tmp_path: Path, train: Callable[..., Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the learning rate it ended with, to the same bits however often it is interrupted."""
    for name in ("run", "twice"):
        train(tmp_path / name)
    longer = settings.with_epochs(5)
    extended = train(tmp_path / "run", longer, resume=True)
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert content["epoch"] == 4
    assert content["lr_schedulers"][0]["_last_lr"] == [settings.preset.min_lr]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["extended"] == [3]
    assert read_settings(tmp_path / "run") == longer
    train(tmp_path / "twice", settings.with_epochs(4), resume=True)
    assert same(extended, train(tmp_path / "twice", longer, resume=True))
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "run", settings, resume=True)


def test_a_run_is_finished_before_it_is_extended(
    tmp_path: Path, train: Callable[..., Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SceneClassifier, "on_validation_epoch_end", interrupted)
        train(tmp_path / "run")
    with pytest.raises(UserError, match=r"completed 0 of its 3 epochs.*resume without --epochs"):
        train(tmp_path / "run", settings.with_epochs(5), resume=True)
    assert read_settings(tmp_path / "run") == settings


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_names_of_folders_are_taken_literally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("~", "$HOME"):
        train(Path(name, "run"))
        train(Path(name, "run"), resume=True)
        assert (tmp_path / name / "run" / "tensorboard").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"~", "$HOME"}


def test_folders_that_cannot_be_written(
    finished: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any]
) -> None:
    """Said before anything else is done, TensorBoard's thread included."""
    with pytest.raises(OSError, match="/proc/run"):
        check_new_run(Path("/proc/run"))

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr(lightning, "Trainer", None)
    with pytest.raises(OSError, match=str(finished)):
        train(finished, resume=True)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text in this locale"):
        check_new_run(tmp_path / "run\udcff")


def test_errors_of_tensorboard_name_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    train: Callable[..., Any],
) -> None:
    """Its thread fails on a full disk without a file's name, and shows a traceback."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'run'}'"):
        train(tmp_path / "run")
    assert "Traceback" not in capsys.readouterr().err


def test_damaged_checkpoint(tmp_path: Path, train: Callable[..., Any], settings: Settings) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"half")
    config = {"preset": asdict(settings.preset), "seed": 1, "classes": CLASSES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"last\.ckpt: .*damaged"):
        train(tmp_path, resume=True)


def test_loading_in_processes_changes_nothing(
    finished: Path, tmp_path: Path, train: Callable[..., Any]
) -> None:
    weights = train(tmp_path / "run", workers=1)
    assert same(weights, load_trainable(finished / "last.ckpt").state_dict())


@pytest.mark.parametrize(("shares", "workers"), [(0.1, 0), (3.1, 2), (5.1, 4)])
def test_workers_that_shared_memory_has_room_for(
    shares: float,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    train: Callable[..., Any],
    make_clips: Callable[..., Any],
) -> None:
    """Beyond, a worker dies of a bus error."""
    used: list[int] = []

    class Loader(DataLoader[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            used.append(options["num_workers"])
            raise KeyboardInterrupt

    bytes_a_worker = 2 * make_clips(1)[0][0].nbytes * (4 + batch_size(16, MAX_BATCH_BYTES))
    free = SimpleNamespace(free=shares * bytes_a_worker)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr("asc.training.run.DataLoader", Loader)
    monkeypatch.setattr("asc.training.run.SHARED_MEMORY", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", workers=4)
    assert used == [workers]
    assert ("shared memory" in caplog.text) == (workers < 4)


def test_mixed_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any], settings: Settings
) -> None:
    """Training in bfloat16 goes about where float32 goes, and everything kept is float32."""
    losses: list[Tensor] = []

    def note(self: SceneClassifier, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses.append(outputs["loss"])

    monkeypatch.setattr(SceneClassifier, "on_train_batch_end", note)
    settings = replace(settings, precision="bf16")
    exact, mixed = train(tmp_path / "exact"), train(tmp_path / "run", settings)
    expected, actual = torch.stack(losses).chunk(2)
    assert actual.dtype == torch.float32
    # Along a value's way a rounding after each convolution, batch norm and pooled row, and three in
    # the head: 4 * 3 + 3, each of at most half of bfloat16's eps.
    torch.testing.assert_close(actual, expected, rtol=15 * 2**-8, atol=0)
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert all(t.dtype == exact[name].dtype for name, t in mixed.items())
    moments = [s for state in content["optimizer_states"][0]["state"].values()
               for s in (state["exp_avg"], state["exp_avg_sq"])]  # fmt: skip
    assert {moment.dtype for moment in moments} == {torch.float32}
    assert not same(mixed, exact)
    assert read_settings(tmp_path / "run") == settings
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "run", resume=True)
    assert same(mixed, train(tmp_path / "run", settings, resume=True))


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_what_lightning_is_asked_for_on_a_gpu(
    precision: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., Any],
    settings: Settings,
) -> None:
    asked: dict[str, Any] = {}

    class Trainer:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit(self, module: SceneClassifier, *loaders: Any, **_: Any) -> None:
            asked["pinned"] = [loader.pin_memory for loader in loaders]
            asked["tf32"] = torch.backends.cuda.matmul.allow_tf32
            raise KeyboardInterrupt

    monkeypatch.setattr(lightning, "Trainer", Trainer)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", replace(settings, precision=precision), device="cuda")
    assert (asked["accelerator"], asked["devices"]) == ("cuda", 1)
    assert asked["pinned"] == [True, True]
    assert asked["tf32"] == (precision == "tf32")
    assert asked["log_every_n_steps"] == 10


def test_too_few_clips(tmp_path: Path, make_clips: Callable[..., Any], settings: Settings) -> None:
    with pytest.raises(UserError, match="3 training clips do not fill one batch of 4"):
        fit(make_clips(3), make_clips(5), CLASSES, settings, tmp_path / "run")
    with pytest.raises(UserError, match="no clips to validate on"):
        fit(make_clips(4), make_clips(0), CLASSES, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["loss", "outputs"])
def test_divergence_stops_training_and_keeps_the_last_good_state(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any]
) -> None:
    """Weights become NaN in epoch 1: before its first step, or after its last loss, where only
    validation notices."""
    step = SceneClassifier.training_step

    def poisoned(self: SceneClassifier, batch: Any, batch_idx: int) -> Tensor:
        bad = self.current_epoch == 1
        if bad and where == "loss":
            self.model.fc1.weight.data[0, 0] = torch.nan
        loss = step(self, batch, batch_idx)
        if bad and where == "outputs" and batch_idx == 1:
            self.model.fc1.weight.data[0, 0] = torch.nan
        return loss

    monkeypatch.setattr(SceneClassifier, "training_step", poisoned)
    with pytest.raises(UserError, match=rf"diverged in epoch 1: .*{where}.*last\.ckpt"):
        train(tmp_path)
    assert load_model(tmp_path / "last.ckpt").is_folded  # which checks that all is finite
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not (tmp_path / "folded.pt").exists()
