"""`asc predict`."""

from pathlib import Path
from typing import Annotated

import typer

from asc.cli.options import (
    Device,
    Devices,
    Inference,
    Masks,
    Seed,
    Tolerance,
    TtaEngine,
    Weights,
    tta_of,
)


def command(
    weights: Weights,
    audio: Annotated[
        list[Path], typer.Argument(help="Audio files, or a data set in TAU layout: its test split.")
    ],
    tta: Masks = "0",
    tta_tolerance: Tolerance = 0.01,
    tta_engine: TtaEngine = "shared",
    seed: Seed = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line instead of a table.")
    ] = False,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Inference = "float32",
) -> None:
    """Names the scene of audio files.

    Of each file the first 10 s count; shorter ones are repeated. Nothing is printed unless all
    files can be read. JSON: file, label, probabilities by class, logits in the order of the
    classes, and masks, how many there were. With --tta probabilities are averages over the masks
    and label is their largest; logits are always those of the unmasked clip.

    \b
    Example:
      asc predict run/folded.pt *.wav --tta 30 --json
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from asc.checkpoint import load_model
    from asc.compute import pick_device
    from asc.data import audio_files, open_logmels, unlabelled
    from asc.processes import check_devices
    from asc.report.tables import prediction_table, print_tables, printable
    from asc.scoring import predict

    target = pick_device(device, precision)
    check_devices(devices, target)
    model = load_model(weights)
    audio = list(audio_files(audio))
    with open_logmels(unlabelled(audio), device=target) as logmels:
        found = predict(
            model,
            logmels,
            tta=tta_of(tta, tta_tolerance),
            seed=seed,
            engine=tta_engine,
            device=target,
            precision=precision,
            devices=devices,
        )
    if not as_json:
        print_tables(Console(), [prediction_table(audio, found)])
        return
    for path, prediction in zip(audio, found, strict=True):
        print(json.dumps({"file": printable(path), **asdict(prediction)}))
