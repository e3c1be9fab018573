"""The whole system on synthetic data: made, trained on, evaluated, timed, reported."""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

import fastsep
from asc.checkpoint import load_model
from asc.compute import DeviceName, send
from asc.data import LogMelDataset, open_dataset, write_synthetic
from asc.files import write_json
from asc.model import Cnn6Sep
from asc.prediction import score_clips
from asc.report.tables import print_tables, score_tables, system_name
from asc.task import FRAMES, HOP, N_MELS, SAMPLE_RATE
from asc.training.run import check_new_run, fit
from asc.training.settings import Settings, get_preset
from fastsep.eager import to_eager

SECONDS = 2.0  # clips of 2 s instead of 10 keep the demo short
SHORT_FRAMES = 1 + int(SECONDS * SAMPLE_RATE) // HOP
TTA = 30


@dataclass(frozen=True)
class Size:
    """How much the demo does: some three minutes on two busy cores."""

    clips_per_scene: int
    epochs: int


COMPILED, UNCOMPILED = Size(14, 10), Size(6, 5)


class Shortened(Dataset[tuple[Tensor, int]]):
    """The first frames of log-mels: a 2 s clip before it was repeated to fill 10 s."""

    def __init__(self, logmels: LogMelDataset) -> None:
        self.logmels = logmels

    def __len__(self) -> int:
        return len(self.logmels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        logmel, label = self.logmels[index]
        return logmel[:, :SHORT_FRAMES], label


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
    # Few epochs, hence a faster learning rate than the report's; time stripes in proportion.
    preset = replace(
        get_preset("ce_tta"),
        epochs=size.epochs,
        batch_size=10,
        lr=3e-3,
        time_width=128 * SHORT_FRAMES // FRAMES,
    )
    if not quick:
        console.print("fastsep's C++ kernels are not built here: a smaller demo, in plain PyTorch.")
    console.print("1. Synthetic scenes: computed, not recorded; scores on them mean little.")
    write_synthetic(out / "data", clips_per_scene=size.clips_per_scene, seconds=SECONDS, seed=seed)
    train, validation = (open_dataset(out / "data", split) for split in ("train", "evaluate"))

    console.print(f"2. Training: {len(train)} clips of {SECONDS:g} s, {preset.epochs} epochs.")
    logmels, held_out = (
        Shortened(LogMelDataset(clips, None, device)) for clips in (train, validation)
    )
    fit(logmels, held_out, train.classes, Settings(preset, seed), out / "run", device=device)

    console.print(f"3. Evaluation: {len(validation)} clips, without and with {TTA} TTA.")
    model = load_model(out / "run" / "folded.pt")
    scores = score_clips(model, held_out, validation, tta=TTA, seed=seed, device=device)
    print_tables(console, score_tables(scores))

    console.print("4. Speed: the folded network with fused layers and with nn.Conv2d layers.")
    eager, fused, note = compare_speed(model)
    console.print(f"nn.Conv2d layers take {eager / fused:.1f} times as long ({note}).")

    console.print(f"Done in {time.perf_counter() - started:.0f} s.")
    console.print(f"In {out}:")
    for name, what in (
        ("data", "synthetic data set in TAU layout"),
        ("run", "checkpoints, config.json, TensorBoard logs"),
        ("run/folded.pt", "weights for inference, float16: try `asc predict` with them"),
        ("results.json", "the scores"),
        ("report.txt", "this text"),
    ):
        console.print(f"  {name:14} {what}")
    results = {
        "data": "synthetic",
        "scores": {system_name(masks): s.to_dict() for masks, s in scores.items()},
        "speed": {"eager_over_fused": eager / fused, "measured": note},
    }
    write_json(out / "results.json", results)
    (out / "report.txt").write_text(console.export_text(), encoding="utf-8")


def compare_speed(model: Cnn6Sep, repeats: int = 9) -> tuple[float, float, str]:
    """Median seconds a 10 s clip takes with nn.Conv2d and with fused layers, and how measured.

    Both run where the model is, in IEEE float32.
    """
    twin, device = to_eager(model), model.fc1.weight.device
    logmel = torch.randn(1, 1, FRAMES, N_MELS, generator=torch.Generator().manual_seed(0))
    seconds: dict[nn.Module, list[float]] = {twin: [], model: []}
    logmel = send(logmel, device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for _ in range(2 + repeats):  # in turn, so that both meet the same disturbances
            for network, times in seconds.items():
                start = time.perf_counter()
                network(logmel).cpu()  # which waits for a GPU
                times.append(time.perf_counter() - start)
    eager, fused = (statistics.median(times[2:]) for times in seconds.values())  # 2 to warm up
    if device.type == "cuda":
        backend, name, where = "triton", "Triton", torch.cuda.get_device_name(device)
    else:
        backend, name, where = "cpu", "C++", f"{torch.get_num_threads()} threads"
    kernels = "fastsep's" if fastsep.backends()[backend].available else "no"
    note = (
        f"{kernels} {name} kernels; one 10 s clip, float32, {where}, median of "
        f"{repeats} after warming up, in turn; PyTorch {torch.__version__} eager as installed"
    )
    return eager, fused, note
