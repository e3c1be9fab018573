"""`asc evaluate`."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from asc.cli.options import (
    Data,
    Device,
    Devices,
    Eps,
    GainOption,
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
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for predictions, scores and a report; what is there of "
            "an evaluation before is replaced.",
        ),
    ] = None,
    audio: Annotated[
        bool,
        typer.Option(
            "--audio/--no-audio",
            help="In the report, excerpts of the worst mistakes to listen to, 6 MB at most.",
        ),
    ] = True,
    split: Annotated[
        Literal["evaluate", "train", "all", "test"],
        typer.Option(
            help="Of the data set. Of one folder per class, evaluate is a fifth, held out by name."
        ),
    ] = "evaluate",
    gain: GainOption = "0",
    eps: Eps = None,
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
    """Scores a network on a data set: overall, by class, by device.

    With --out a folder is left of predictions.csv (what the network says about every clip),
    scores.json and report.html (all of it to look at, in one file). Of --split test, clips without
    labels, there are predictions alone.

    \b
    Example:
      asc evaluate run/folded.pt DATA --tta 30 --out results
    """
    from rich.console import Console

    from asc.calibration import refuse_fitted_on
    from asc.checkpoint import load_model
    from asc.compute import pick_device
    from asc.data import open_dataset, open_logmels, user_cache
    from asc.errors import UserError
    from asc.files import check_file, is_stdout, write_results
    from asc.level import LevelledItems, check_gain
    from asc.processes import check_devices
    from asc.report.found import remark_on_levels
    from asc.report.tables import print_tables, printable, score_tables
    from asc.scoring import How, evaluation_journal, predict, score_clips

    target = pick_device(device, precision)
    check_devices(devices, target)
    if split == "test" and (out is None or json_file is not None):
        raise UserError(
            "--split test has no labels to score: with --out DIR, and without --json, it leaves "
            "predictions"
        )
    if json_file is not None:
        check_file(json_file, weights)
    if out is not None:
        from asc.report.folder import (
            check_out,
            import_meanwhile,
            write_evaluation,
            write_unscored,
        )

        check_out(out, scored=split != "test")
    model = load_model(weights, eps=eps)
    check_gain(gain, model.level)
    clips = open_dataset(data, split, model.classes)
    if split != "test" and not allow_calibration_clips:
        refuse_fitted_on(model, weights, clips, data)
    if clips.of is not None:
        print(
            f"asc: {len(clips)} of {clips.of} clips are scored, the split '{split}'; "
            "for data that was not trained on, --split all scores all of them",
            file=sys.stderr,
        )
    masks = tta_of(tta, tta_tolerance)
    journal = evaluation_journal(
        cache or user_cache(), model, clips, masks, seed, target, precision, gain
    )
    if out is not None and split != "test":
        import_meanwhile()
    how: How = {
        "tta": masks,
        "seed": seed,
        "engine": tta_engine,
        "device": target,
        "precision": precision,
        "devices": devices,
        "journal": journal,
    }
    with journal or nullcontext():  # kept until its results are written
        with open_logmels(clips, cache, target) as logmels:
            heard = LevelledItems(logmels, gain, model.level)
            if out is not None and split == "test":
                write_unscored(out, data, clips, model.classes, predict(model, heard, **how))
            else:
                found = score_clips(model, heard, clips, **how)
        remark_on_levels([clip.path for clip in clips], heard.levels.tolist(), model.level)
        if split == "test":
            print(f"{printable(str(out))}: predictions.csv; no scores, the split has no labels")
            return
        taken = json_file is not None and is_stdout(json_file)  # the tables make way
        console = Console(stderr=taken)
        try:  # nobody may be there to read the tables; nothing may be there to write to
            if json_file is not None or out is not None:
                from asc.report.evaluation import describe

                settings = {
                    "weights": str(weights),
                    "data": str(data),
                    "split": split,
                    "seed": seed,
                    "eps": eps,
                    "gain": gain,
                    "precision": precision,
                }
                content = describe(settings, found, clips, model)
                if json_file is not None:
                    write_results(json_file, content)
                if out is not None:
                    write_evaluation(out, data, clips, model, found, content, audio=audio)
        finally:
            print_tables(console, score_tables(found.scores, clips.of, found.masks))
        if out is not None:
            left = f"{printable(out)}: predictions.csv, scores.json, report.html"
            console.print(left, soft_wrap=True, markup=False, highlight=False)
