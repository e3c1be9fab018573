"""`asc calibrate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from asc.cli.options import WHOLE, Data, Device, Inference, Seed, TtaEngine, Weights
from asc.compute import MAX_MASKS


def command(
    weights: Weights,
    data: Data,
    split: Annotated[
        Literal["train", "evaluate"],
        typer.Option(
            help="Clips to fit on. A network is surer of clips that it was trained on than of "
            "others; asc evaluate refuses to score any of those fitted on."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File for the calibrated weights, folded.")],
    tta: Annotated[
        int,
        typer.Option(
            metavar=WHOLE,
            min=0,
            max=MAX_MASKS,
            help="Masks per clip to average over: as many as the weights will be used with.",
        ),
    ] = 0,
    tta_engine: TtaEngine = "shared",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Inference = "float32",
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the log-mels for the next time.")
    ] = None,
) -> None:
    """Makes a network as sure as it is right: fits its temperature.

    All logits are divided by one number, the temperature, chosen for the smallest log loss on the
    clips. Which class is most probable does not change (with --tta, hardly), how probable it is
    does. The written weights hold it: everything that uses them is calibrated.

    \b
    Example:
      asc calibrate run/folded.pt DATA --split train --out calibrated.pt
    """
    from rich.console import Console

    from asc.calibration import (
        all_logits,
        clip_names,
        fit_temperature,
        mean_probabilities,
        quality,
    )
    from asc.checkpoint import load_model, save_folded
    from asc.compute import pick_device
    from asc.data import open_dataset, open_logmels
    from asc.files import check_file, is_stdout
    from asc.fitted import FittedOn
    from asc.report.tables import calibration_table, print_tables

    target = pick_device(device, precision)
    check_file(out, weights)
    model = load_model(weights)
    clips = open_dataset(data, split, model.classes)
    labels = [label for label in clips.labels if label is not None]
    with open_logmels(clips, cache, target) as logmels:
        logits = all_logits(
            model,
            logmels,
            tta=tta,
            seed=seed,
            engine=tta_engine,
            device=target,
            precision=precision,
        )
    temperature = fit_temperature(logits, labels)
    before, after = (quality(mean_probabilities(logits, t), labels) for t in (1.0, temperature))
    calibrated = model.calibrated(temperature)
    calibrated.fitted_on = FittedOn.of(split, clip_names(clips, data))
    save_folded(calibrated, out)
    console = Console(stderr=is_stdout(out))
    print_tables(console, [calibration_table(before, after)])
    console.print(
        f"temperature {calibrated.temperature:.4f}, fitted on {len(clips)} clips of the split "
        f"'{split}'",
        soft_wrap=True,
    )
