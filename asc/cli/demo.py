"""`asc demo`."""

from pathlib import Path
from typing import Annotated

import typer

from asc.cli.options import Device, Seed


def command(
    out: Annotated[Path, typer.Option(help="Folder for the results, new or empty.")] = Path(
        "asc-demo"
    ),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Shows the whole system on synthetic data, in a few minutes.

    Makes data, trains, evaluates without and with test-time augmentation, and times the fused
    layers against PyTorch's own.

    \b
    Example:
      asc demo --out asc-demo
    """
    from asc.compute import pick_device
    from asc.demo import run

    run(out, seed, pick_device(device))
