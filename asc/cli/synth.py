"""`asc synth`."""

from pathlib import Path
from typing import Annotated

import typer

from asc.cli.options import Seed


def command(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make, new or empty.")],
    clips_per_scene: Annotated[int, typer.Option(help="At least 2.")] = 12,
    seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 10.0,
    seed: Seed = 0,
) -> None:
    """Makes a synthetic data set, to try things on.

    Ten scenes in the layout of TAU Urban Acoustic Scenes; computed, not recorded.

    \b
    Example:
      asc synth DATA --clips-per-scene 20
    """
    from asc.data import write_synthetic

    write_synthetic(out, clips_per_scene=clips_per_scene, seconds=seconds, seed=seed)
