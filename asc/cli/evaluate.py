"""`asc evaluate`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from asc.cli.options import (
    Data,
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
    data: Data,
    tta: Masks = "0",
    tta_tolerance: Tolerance = 0.01,
    tta_engine: TtaEngine = "shared",
    seed: Seed = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the scores to a file; -: standard output."
        ),
    ] = None,
    split: Annotated[
        Literal["evaluate", "train", "all"],
        typer.Option(
            help="Of the data set. Of one folder per class, evaluate is a fifth, held out by name."
        ),
    ] = "evaluate",
    eps: Annotated[
        float | None,
        typer.Option(
            help="In 1 / sqrt(var + eps) when batch norm is folded, instead of its own 1e-5; "
            "0 reproduces the numbers published for the report's weights.",
            show_default=False,
        ),
    ] = None,
    allow_calibration_clips: Annotated[
        bool,
        typer.Option(
            "--allow-calibration-clips",
            help="Score clips that the temperature of the weights was fitted on.",
        ),
    ] = False,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Inference = "float32",
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the log-mels for the next time; without one they are computed "
            "as they are needed."
        ),
    ] = None,
) -> None:
    """Scores a network on a data set: overall, by class and by device.

    \b
    Example:
      asc evaluate run/folded.pt DATA --tta 30 --json scores.json
    """
    from rich.console import Console

    from asc.calibration import refuse_fitted_on
    from asc.checkpoint import load_model
    from asc.compute import pick_device
    from asc.data import open_dataset, open_logmels, user_cache
    from asc.files import check_file, is_stdout, write_results
    from asc.processes import check_devices
    from asc.report.tables import print_tables, printable, score_tables
    from asc.scoring import evaluation_journal, score_clips

    target = pick_device(device, precision)
    check_devices(devices, target)
    if json_file is not None:
        check_file(json_file)
    model = load_model(weights, eps=eps)
    clips = open_dataset(data, split, model.classes)
    if not allow_calibration_clips:
        refuse_fitted_on(model, weights, clips, data)
    if clips.of is not None:
        print(
            f"asc: {len(clips)} of {clips.of} clips are scored, the split '{split}'; "
            "for data that was not trained on, --split all scores all of them",
            file=sys.stderr,
        )
    masks = tta_of(tta, tta_tolerance)
    journal = evaluation_journal(
        cache or user_cache(), model, clips, masks, seed, target, precision
    )
    with open_logmels(clips, cache, target) as logmels:
        found = score_clips(
            model,
            logmels,
            clips,
            tta=masks,
            seed=seed,
            engine=tta_engine,
            device=target,
            precision=precision,
            devices=devices,
            journal=journal,
        )
    taken = json_file is not None and is_stdout(json_file)  # the tables make way
    print_tables(Console(stderr=taken), score_tables(found.scores, clips.of, found.masks))
    if json_file is not None:
        content = {
            "weights": str(weights),
            "data": str(data),
            "split": split,
            "seed": seed,
            "eps": eps,
            "precision": precision,
            "results": [
                {"tta": masks if isinstance(masks, int) else asdict(masks), **s.to_dict()}
                for masks, s in found.scores.items()
            ],
        }
        if tta == "auto":
            names = [printable(clip.path) for clip in clips]
            content["masks"] = dict(zip(names, found.masks, strict=True))
        write_results(json_file, content)
    if journal is not None:
        journal.remove()
