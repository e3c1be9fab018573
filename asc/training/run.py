"""Training on Lightning: one run, one folder.

    RUN/config.json     all settings, the data and the versions of the software, of the last start
    RUN/last.ckpt       state after the last complete epoch, to resume from
    RUN/best.ckpt       state of the epoch with the lowest validation log loss
    RUN/folded.pt       last.ckpt (or best.ckpt, see `Settings.keep`) folded, float16; written when
                        training is over
    RUN/tensorboard/    losses, scores and learning rate (`tensorboard --logdir RUN`)

Everything random follows from the seed and the number of the epoch or step, so on one machine a run
that was interrupted and resumed ends with the same weights as one that was not.

Several processes (`devices`) train on one batch together, each on its share; see `asc.processes`.
The first one writes. Another number of them trains another way: its shares of a batch have other
batch statistics, MixUp partners and dropout.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

import fastsep
from asc import checkpoint
from asc.compute import DeviceName, float32_products
from asc.data import ClipList, LogMelDataset, choose_cache, open_dataset
from asc.errors import UserError, note
from asc.files import check_folder, make_folder, write_json
from asc.prediction import MAX_BATCH_BYTES, batch_size
from asc.processes import Place, run
from asc.progress import Advance
from asc.training.callbacks import AtomicCheckpointIO, KeepBestAndLast, Progress
from asc.training.module import LOOK_EVERY, Diverged, SceneClassifier
from asc.training.settings import Settings, may_extend, read_settings
from asc.training.sharing import EpochShuffle, first_before_others, join, meet, synchronise

SHARED_MEMORY = Path("/dev/shm")  # through which workers hand over what they loaded
PREFETCHED = 2  # batches a worker has ready, PyTorch's default


class RunLogger(TensorBoardLogger):
    """Lightning would expand `~` and `$NAME` in the folder, which nothing else does."""

    def __init__(self, out: Path) -> None:
        super().__init__(out.absolute(), name=None, version="tensorboard")

    @property
    def log_dir(self) -> str:
        return str(Path(self.save_dir, "tensorboard"))


class Environment(LightningEnvironment):
    """The variables of torchrun and of `asc.processes`, which have to outlast a run."""

    def teardown(self) -> None:  # Lightning's takes WORLD_SIZE away
        pass


def check_new_run(out: Path) -> None:
    """UserError or OSError unless a run can start in this folder: new, or empty."""
    _check_folder(out)
    # What a killed process was writing when it was killed is no run that could be resumed.
    if out.is_dir() and not all(path.match(".*.tmp") for path in out.iterdir()):
        raise UserError(f"{out}: is not empty; choose a new folder, or resume the run in it")


def check_batch(clips: int, settings: Settings) -> None:
    """UserError unless there are enough clips for one batch (the last, partial one is dropped)."""
    if clips < settings.preset.batch_size:
        raise UserError(
            f"{clips} training clips do not fill one batch of {settings.preset.batch_size}: "
            "choose a smaller batch size"
        )


def fit_data(
    data: Path,
    settings: Settings,
    out: Path,
    *,
    device: DeviceName = "cpu",
    cache: Path | None = None,
    workers: int = 0,
    devices: int = 1,
    resume: bool = False,
) -> None:
    """`fit` on a data set folder; log-mels are computed only when all else is in order.

    Args:
        data: the data set, see `asc.data.open_dataset`.
        cache: folder that keeps the log-mels; None: see `asc.data.choose_cache`.
        settings, out, device, workers, devices, resume: as for `fit`.

    Raises:
        UserError, OSError, KeyboardInterrupt: as `fit`, and what the data set's readers raise.
    """
    place = join(devices, device, settings)
    if resume:
        _check_folder(out)
    else:
        check_new_run(out)
    clips, validation = (open_dataset(data, split) for split in ("train", "evaluate"))
    check_batch(len(clips), settings)
    cache = choose_cache(len(clips) + len(validation), cache)
    notes = {
        "data": str(data.absolute()),
        "fingerprint": fingerprint(data, (clips, validation)),
        "cache": cache and str(cache.absolute()),
    }
    if resume:
        _check_same(out, settings, clips.classes, (len(clips), len(validation)), notes)
    with first_before_others(place):  # which find them in the cache
        datasets = LogMelDataset(clips, cache, device), LogMelDataset(validation, cache, device)
    fit(*datasets, clips.classes, settings, out, device=device, workers=workers, devices=devices,
        resume=resume, notes=notes)  # fmt: skip


def fingerprint(root: Path, splits: Iterable[ClipList]) -> str:
    """What tells a data set from others, wherever it lies: names, sizes and labels of its files."""
    digest = hashlib.sha256()
    for clip in chain(*splits):
        name = os.fsencode(os.path.relpath(clip.path, root))
        digest.update(b"%s\0%d\0%d\n" % (name, clip.path.stat().st_size, clip.label or 0))
    return digest.hexdigest()[:16]


def fit(
    train: Dataset[tuple[Tensor, int]],
    validation: Dataset[tuple[Tensor, int]],
    classes: Sequence[str],
    settings: Settings,
    out: Path,
    *,
    device: DeviceName = "cpu",
    workers: int = 0,
    devices: int = 1,
    resume: bool = False,
    notes: dict[str, Any] | None = None,
) -> None:
    """Trains `Cnn6Sep` in a run folder (see the top of this file).

    Args:
        train, validation: items (logmel (1, T, 256) float32, label).
        classes: names of the labels.
        settings: preset, seed and precision; to resume, those of the run (`read_settings`). A run
            that is finished may be given more epochs, with the learning rate that it ended with.
        out: the run's folder; new or empty, unless resuming.
        device: "cpu" or "cuda".
        workers: processes that load data, for each device.
        devices: processes that train on shares of each batch, with a GPU each on "cuda". They are
            started here (see `asc.processes.run`), but by torchrun where that is at work.
        resume: go on after last.ckpt; starts over when no epoch was completed.
        notes: more to write into config.json, such as where the data came from.

    Raises:
        UserError: the folder is taken, another run's settings, too few clips, devices that are not
            there or do not divide a batch, a process was killed, or training diverged; checkpoints
            of complete epochs stay.
        KeyboardInterrupt: on Ctrl-C; likewise.
        OSError: the folder cannot be written.
    """
    preset, place = settings.preset, join(devices, device, settings)
    count = max(devices, place.count)
    clips, validation_clips = len(train), len(validation)  # type: ignore[arg-type]
    check_batch(clips, settings)
    if validation_clips == 0:
        raise UserError("there are no clips to validate on")
    config = {
        **asdict(settings),
        "classes": list(classes),
        "clips": {"train": clips, "validation": validation_clips},
        "device": device,
        "workers": workers,
        "devices": count,
        **(notes or {}),
        "versions": _versions(),
    }
    last = out / "last.ckpt"
    first_epoch = 0
    if resume:
        _check_folder(out)
        theirs = _check_same(out, settings, classes, (clips, validation_clips), notes or {})
        if last.exists():
            first_epoch = 1 + checkpoint.read(last)["epoch"]
        epochs = theirs["preset"]["epochs"]
        if epochs < preset.epochs and first_epoch < epochs:
            raise UserError(
                f"{out}: the run has completed {first_epoch} of its {epochs} epochs, over which "
                "its learning rate falls; resume without --epochs, then it can be extended"
            )
        before = theirs.get("devices", 1)
        if first_epoch and count != before and place.is_first:
            statistics = "" if settings.sync_batch_norm else ", and batch statistics of other sizes"
            note(
                f"{out}: {before} devices have trained so far, {count} go on: with other draws of "
                f"dropout and MixUp{statistics}; only {before} end with the weights of one run"
            )
        config["extended"] = [*theirs.get("extended", []), *[epochs] * (epochs < preset.epochs)]
    else:
        check_new_run(out)
    meet(place)  # all have checked before the first one writes
    if place.is_first:
        make_folder(out)
        write_json(out / "config.json", config)
    meet(place)

    work = train, validation, tuple(classes), settings, out, device, workers, first_epoch
    if count == place.count:
        _train(place, lambda n: None, *work)
    else:
        run(_train, [work] * devices)
    if place.is_first:
        chosen = checkpoint.load_model(out / f"{settings.keep}.ckpt")
        checkpoint.save_folded(chosen, out / "folded.pt")


def _train(
    place: Place,
    advance: Advance,
    train: Dataset[tuple[Tensor, int]],
    validation: Dataset[tuple[Tensor, int]],
    classes: Sequence[str],
    settings: Settings,
    out: Path,
    device: DeviceName,
    workers: int,
    first_epoch: int,
) -> None:
    """One process's part of `fit`."""
    preset, last = settings.preset, out / "last.ckpt"
    alone = place.count == 1
    if not place.is_first:
        logging.getLogger("asc").setLevel(logging.ERROR)  # the first one has said it
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    module = SceneClassifier(settings, classes, place)
    if settings.sync_batch_norm and not alone:
        synchronise(module.model, device)
    item, validation_item = train[0][0], validation[0][0]
    validation_batch = batch_size(validation_item.shape[1], MAX_BATCH_BYTES)
    share = preset.batch_size // place.count
    batches = item.nbytes * share + validation_item.nbytes * validation_batch
    workers = _affordable(workers, batches * place.local_count)
    loading: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": device == "cuda",
        "collate_fn": _collate,
    }
    clips = len(train)  # type: ignore[arg-type]
    sampler = EpochShuffle(clips, preset.batch_size, settings.seed, first_epoch, place)
    dealt: DistributedSampler[Any] = DistributedSampler(
        validation, place.count, place.rank, shuffle=False
    )
    loaders = (
        DataLoader(train, share, sampler=sampler, **loading),
        DataLoader(validation, validation_batch, sampler=dealt, **loading),
    )
    with _quiet(), float32_products(settings.precision):
        trainer = lightning.Trainer(
            accelerator=device,
            devices=place.local_count,
            num_nodes=place.count // place.local_count,
            strategy="auto" if alone else "ddp",
            use_distributed_sampler=False,
            max_epochs=preset.epochs,
            logger=RunLogger(out),
            callbacks=[KeepBestAndLast(out), Progress(), LearningRateMonitor("epoch")],
            plugins=[AtomicCheckpointIO(), *([] if alone else [Environment()])],
            log_every_n_steps=LOOK_EVERY[device],
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                module,
                *loaders,
                ckpt_path=last.absolute() if first_epoch else None,
                weights_only=True,
            )
        except Diverged as error:
            kept = f"the last good state is in {last}" if last.exists() else "no epoch was complete"
            raise UserError(
                f"training diverged in epoch {module.current_epoch}: {error}; {kept}"
            ) from error
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, str(out)) from error  # of TensorBoard
        except SystemExit as error:  # how Lightning passes Ctrl-C on
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error


def _check_folder(out: Path) -> None:
    check_folder(out)
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{out}: TensorBoard cannot write to a folder whose name is no text in this locale; "
            "choose another one"
        ) from None


def _check_same(
    out: Path,
    settings: Settings,
    classes: Sequence[str],
    clips: tuple[int, int],
    notes: dict[str, Any],
) -> dict[str, Any]:
    """The run's configuration; UserError if it is of other settings or data."""
    if not may_extend(read_settings(out), settings):
        raise UserError(f"{out}: the run has other settings than those asked for")
    config: dict[str, Any] = json.loads((out / "config.json").read_text(encoding="utf-8"))
    if config.get("classes") != list(classes):
        raise UserError(
            f"{out}: the run was started on data with other classes ({config.get('classes')})"
        )
    mine = {"train": clips[0], "validation": clips[1]}
    mark = notes.get("fingerprint")
    if config.get("clips", mine) != mine or config.get("fingerprint", mark) != mark:
        raise UserError(
            f"{out}: the run was started on other data ({config.get('data', 'now unknown')}, as it "
            "was then); resume on that, or start a new run"
        )
    return config


def _collate(items: Any) -> Any:
    """A batch; a data set that gathers its own (`__getitems__`) has made it already."""
    return items if isinstance(items, tuple) else default_collate(items)


def _affordable(workers: int, batch_bytes: int) -> int:
    """So many workers, or as many as there is shared memory for: containers have 64 MB."""
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    fitting = int(free / (PREFETCHED * batch_bytes)) - 1  # a share for what is computed with
    if fitting >= workers:
        return workers
    fitting = max(0, fitting)
    note(
        f"{workers} workers need {(workers + 1) * PREFETCHED * batch_bytes / 1e6:.0f} MB of shared "
        f"memory and {SHARED_MEMORY} has {free / 1e6:.0f} MB (docker run --shm-size): "
        f"{fitting} load data"
    )
    return fitting


def _versions() -> dict[str, str]:
    names = ("torch", "torchaudio", "lightning")
    return {
        "asc": fastsep.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off the screen Lightning's remarks on what it found (no GPU, one worker), and the
    traceback of TensorBoard's thread that writes: its errors are raised in the main thread too."""
    logger = logging.getLogger("lightning.pytorch")
    level, hook = logger.level, threading.excepthook
    logger.setLevel(logging.ERROR)

    def excepthook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            hook(arguments)

    threading.excepthook = excepthook
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        threading.excepthook = hook
        logger.setLevel(level)
