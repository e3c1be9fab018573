"""The whole system on synthetic data: made, trained on, evaluated, timed, reported."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

import fastsep
from asc.checkpoint import load_model
from asc.compute import DeviceName, pick_device
from asc.data import LogMelDataset, open_dataset, write_synthetic
from asc.files import write_json
from asc.metrics import Scores, confusion_matrix
from asc.report.pictures import draw_run
from asc.report.tables import score_tables, system_name
from asc.scoring import score_clips
from asc.speed import Speed, compare
from asc.training.run import check_new_run, fit
from asc.training.settings import Settings, get_preset

TTA = 30


@dataclass(frozen=True)
class Size:
    """How much the demo does: under three minutes on two cores."""

    clips_per_scene: int
    epochs: int


COMPILED, UNCOMPILED = Size(14, 10), Size(4, 2)


def run(out: Path, seed: int, device: DeviceName = "cpu") -> None:
    """Runs the demo and leaves everything in `out` (see its last lines); a new or empty folder.

    Raises:
        UserError: the folder is taken.
        OSError: it cannot be written.
    """
    started = time.perf_counter()
    check_new_run(out)
    console = Console(record=True, highlight=False, markup=False)
    quick = device == "cuda" or fastsep.backends()["cpu"].available
    size = COMPILED if quick else UNCOMPILED
    # Few epochs, hence a faster learning rate than the report's.
    preset = replace(get_preset("ce_tta"), epochs=size.epochs, batch_size=10, lr=3e-3)
    if not quick:
        console.print("fastsep's C++ kernels are not built here: a smaller demo, in plain PyTorch.")
    console.print("1. Synthetic scenes: computed, not recorded; scores on them mean little.")
    write_synthetic(out / "data", clips_per_scene=size.clips_per_scene, seed=seed)
    train, validation = (open_dataset(out / "data", split) for split in ("train", "evaluate"))

    console.print(f"2. Training: {len(train)} clips of 10 s, {preset.epochs} epochs.")
    logmels, held_out = (LogMelDataset(clips, None, device) for clips in (train, validation))
    settings = Settings(preset, seed)
    fit(logmels, held_out, train.classes, settings, out / "run", device=device)

    console.print(f"3. Evaluation: {len(validation)} clips, without and with {TTA} TTA.")
    weights = out / "run" / "folded.pt"
    model = load_model(weights)
    found = score_clips(model, held_out, validation, tta=TTA, seed=seed, device=device)
    scores = found.scores
    for table in score_tables(scores):
        console.print(table)
    picture = out / "picture.png"
    labels = [label for label in validation.labels if label is not None]
    confusion = confusion_matrix(found.probabilities[TTA], labels)
    draw_run(out / "run", confusion, model.classes, picture)

    console.print("4. Speed: the folded network with fused layers and with nn.Conv2d layers.")
    speed = compare(weights, device)
    console.print(f"PyTorch takes {speed.ratio:.1f} times as long ({speed.measured}).")

    for sentence in conclusion(scores[0], scores[TTA], speed):
        console.print(sentence)
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. In {out}:", soft_wrap=True, markup=False
    )
    for name, what in (
        ("data", "synthetic data set in TAU layout"),
        ("run", "checkpoints, config.json, TensorBoard logs"),
        ("run/folded.pt", "weights for inference, float16"),
        ("picture.png", "losses by epoch, and which scene was taken for which"),
        ("results.json", "the scores"),
        ("report.txt", "this text"),
    ):
        console.print(f"  {name:14} {what}")
    console.print("Next, the same numbers from the command line, and one clip:")
    for command in next_commands(out, validation[0].path, seed, device):
        console.print(f"  {command}", soft_wrap=True, markup=False)
    results = {
        "data": "synthetic",
        "scores": {system_name(masks): s.to_dict() for masks, s in scores.items()},
        "speed": {"eager_over_fused": speed.ratio, **asdict(speed)},
    }
    write_json(out / "results.json", results)
    (out / "report.txt").write_text(console.export_text(), encoding="utf-8")


def conclusion(plain: Scores, augmented: Scores, speed: Speed) -> tuple[str, str]:
    """What came out, in two sentences."""
    helps = augmented.log_loss_macro < plain.log_loss_macro
    return (
        f"Test-time augmentation {'helps' if helps else 'does not help'} here: with {TTA} masks a "
        f"clip the log loss goes from {plain.log_loss_macro:.3f} to {augmented.log_loss_macro:.3f} "
        f"and the calibration error from {100 * plain.ece:.1f} % to {100 * augmented.ece:.1f} %.",
        f"A 10 s clip takes {1000 * speed.fused:.1f} ms with fused layers and "
        f"{1000 * speed.eager:.1f} ms with PyTorch's own at their best ({speed.layout} maps).",
    )


def next_commands(out: Path, clip: Path, seed: int, device: DeviceName) -> Iterator[str]:
    """Commands that go on from here and find the same numbers."""
    options = ["--tta", str(TTA)]
    options += ["--seed", str(seed)] if seed else []
    options += ["--device", device] if device != pick_device("auto") else []
    weights = str(out / "run" / "folded.pt")
    yield shlex.join(["asc", "evaluate", weights, str(out / "data"), *options])
    yield shlex.join(["asc", "predict", weights, str(clip), *options])
