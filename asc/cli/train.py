"""`asc train`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from asc.cli.options import MAX_PROCESSES, WHOLE, Cache, Data, Device, Devices, with_settings


@with_settings
def command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the run, new or empty.")],
    given: dict[str, Any],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out and its settings; when done, for more --epochs.",
        ),
    ] = False,
    device: Device = "auto",
    cache: Cache = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar=WHOLE, min=0, max=MAX_PROCESSES, help="Processes that load data, a device."
        ),
    ] = 0,
    devices: Devices = 1,
) -> None:
    """Trains a network.

    Leaves last.ckpt, best.ckpt (the epoch that did best on the clips held out), folded.pt (float16,
    for inference), config.json and TensorBoard logs in --out.

    \b
    Example:
      asc train DATA --preset fl_tta --out run
      asc train DATA --out run --resume
    """
    from asc.compute import pick_device
    from asc.processes import torchrun_place
    from asc.training.callbacks import validated
    from asc.training.run import fit_data
    from asc.training.settings import Settings, resumed_settings

    settings = resumed_settings(out, given) if resume else Settings().override(given)
    target = pick_device(device, settings.precision)
    try:
        fit_data(data, settings, out, device=target, cache=cache, workers=workers,
                 devices=devices, resume=resume)  # fmt: skip
    except KeyboardInterrupt:
        begun = (out / "config.json").is_file()
        if not (begun and torchrun_place().is_first):
            raise
        print(f"asc: interrupted; --resume goes on with the run in {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    if not torchrun_place().is_first:
        return
    for name in ("last", "best"):
        if scores := validated(out / f"{name}.ckpt"):
            print(
                f"{name} epoch, {scores.epoch}: on the clips held out log loss "
                f"{scores.log_loss:.3f}, accuracy {100 * scores.accuracy:.1f} %"
            )
    print(f"{out / 'folded.pt'}: weights for inference, of the {settings.keep} epoch; next:")
    print(shlex.join(["asc", "evaluate", str(out / "folded.pt"), str(data), "--tta", "30"]))
