"""What the commands share: arguments, options, and the options that settings make."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asc.compute import MAX_MASKS, DeviceChoice, Engine, Precision
from asc.settings import Option, options
from asc.training.settings import MAX_SEED, Settings

if TYPE_CHECKING:  # which takes PyTorch to import
    from asc.prediction import Until

WHOLE = "<int>"  # as the kind of value in the help: its range stands there anyway
MAX_GAIN = 100  # dB, the range of the front end
MAX_PROCESSES = 256  # more would sooner bring a machine down than be of use

Weights = Annotated[
    Path, typer.Argument(help="A training checkpoint, folded weights, or an SP4ASC checkpoint.")
]
Data = Annotated[
    Path, typer.Argument(help="A data set: TAU layout, or one folder of audio files per class.")
]


def _masks(text: str) -> int | str:
    """A number of masks, or "auto"."""
    if text == "auto":
        return text
    try:
        masks = int(text)
    except ValueError:
        raise typer.BadParameter(f"it must be an integer or auto, not '{text}'") from None
    if masks < 0 or masks > MAX_MASKS:
        limit = "at least 0" if masks < 0 else f"at most {MAX_MASKS}"
        raise typer.BadParameter(f"it must be {limit}, not '{text}'")
    return masks


Masks = Annotated[
    Any,
    typer.Option(
        "--tta",
        metavar="<int>|auto",
        parser=_masks,
        help=f"Masks per clip to average over, at most {MAX_MASKS}; 0: no augmentation; auto: as "
        "many as the clip needs, see --tta-tolerance.",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        "--tta-tolerance",
        metavar="<float>",
        min=1e-4,
        max=0.5,
        help="With --tta auto: masks are drawn, 20 at a time and at most 1000, until the standard "
        "error of every averaged probability is no larger than this.",
    ),
]


def tta_of(masks: int | str, tolerance: float) -> "int | Until":
    """What --tta and --tta-tolerance ask for."""
    from asc.prediction import Until

    return masks if isinstance(masks, int) else Until(tolerance)


def _gain(text: str) -> float | str:
    """A number of dB, or "auto"."""
    if text == "auto":
        return text
    try:
        gain = float(text)
    except ValueError:
        raise typer.BadParameter(f"it must be a number of dB or auto, not '{text}'") from None
    if not abs(gain) <= MAX_GAIN:  # nor NaN
        raise typer.BadParameter(f"it must be from -{MAX_GAIN} to {MAX_GAIN} dB, not '{text}'")
    return gain


GainOption = Annotated[
    Any,
    typer.Option(
        "--gain",
        metavar="<dB>|auto",
        parser=_gain,
        help="Make the recordings louder by so many dB before the network hears them; auto: each "
        "clip or window by what brings its mean log-mel to that of the network's training set.",
    ),
]
Eps = Annotated[
    float | None,
    typer.Option(
        help="In 1 / sqrt(var + eps) when batch norm is folded, instead of its own 1e-5; "
        "0 reproduces the numbers published for the report's weights.",
        show_default=False,
    ),
]
TtaEngine = Annotated[
    Engine,
    typer.Option(
        "--tta-engine",
        help="How masked copies are computed; shared: each differs from the clip only near its "
        "masks, and just that is computed; batched: each by itself. The same result.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar=WHOLE, min=0, max=MAX_SEED, help="Of everything random.")
]
Device = Annotated[
    DeviceChoice, typer.Option(help="Where to compute; auto: on the GPU if there is one.")
]
Inference = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Of the network's products. tf32: on GPUs; bf16: where there are kernels for it.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps the log-mels for the next time; without one they take 0.44 MB of "
        "memory a clip, or where that is more than 1 GB in all, ~/.cache/asc keeps them."
    ),
]
Devices = Annotated[
    int,
    typer.Option(
        metavar=WHOLE,
        min=1,
        max=MAX_PROCESSES,
        help="GPUs, or processes on a CPU, that share the clips.",
    ),
]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Puts an option for each setting in the place of a command's parameter `given`.

    The command gets them as one dictionary; a setting that was not asked for is None in it.
    """
    parameters = inspect.signature(command).parameters
    made = [_parameter(option) for option in options(Settings)]

    @wraps(command)
    def run(**arguments: Any) -> None:
        given = {parameter.name: arguments.pop(parameter.name) for parameter in made}
        command(given=given, **arguments)

    at = list(parameters).index("given")
    shown = list(parameters.values())
    shown[at : at + 1] = made
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # typer reads it
    return run


def _parameter(option: Option) -> inspect.Parameter:
    about, kind = option.about, option.kind
    flag = (f"--{option.name.replace('_', '-')}",) if kind is bool else ()  # without a --no-...
    described = typer.Option(
        *flag,
        metavar=WHOLE if kind is int else None,
        min=about.at_least,
        max=about.at_most,
        show_default=option.default,
        help=about.help,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[kind | None, described],
    )
