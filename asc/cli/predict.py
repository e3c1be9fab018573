"""`asc predict`."""

from pathlib import Path
from typing import Annotated

import typer

from asc.cli.options import (
    WHOLE,
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
from asc.errors import UserError, note
from asc.raw import MOST_CHANNELS, MOST_RATE, RawFormat, SampleFormat

_Rate = Annotated[
    int | None,
    typer.Option(
        "--rate",
        metavar=WHOLE,
        min=1,
        max=MOST_RATE,
        help="Of raw samples on standard input, in Hz.",
        show_default=False,
    ),
]
_Channels = Annotated[
    int | None,
    typer.Option(
        "--channels",
        metavar=WHOLE,
        min=1,
        max=MOST_CHANNELS,
        help="Of raw samples on standard input.",
        show_default=False,
    ),
]
_Kind = Annotated[
    SampleFormat | None,
    typer.Option(
        "--sample-format",
        help="Of raw samples on standard input: unsigned, signed or float, bits, little endian.",
        show_default=False,
    ),
]


def command(
    weights: Weights,
    audio: Annotated[
        list[Path],
        typer.Argument(
            help="Audio files, folders of them, quoted patterns such as '*.wav', data sets in TAU "
            "layout: their test split; -: standard input, WAV or raw samples."
        ),
    ],
    window: Annotated[
        float | None,
        typer.Option(
            metavar="<seconds>",
            help="Go through all of each recording in windows of this length, from 0.1 to 60 s; "
            "those below 10 s are repeated to 10 s.",
            show_default="none; standard input: 10",
        ),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(
            metavar="<seconds>",
            help="From the beginning of a window to that of the next.",
            show_default="half a window",
        ),
    ] = None,
    timeline: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Write the windows, their scenes and probabilities to a .csv or draw them into a "
            ".png; may be given for each.",
            show_default=False,
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Of folders, those inside them too.")
    ] = False,
    tta: Masks = "0",
    tta_tolerance: Tolerance = 0.01,
    tta_engine: TtaEngine = "shared",
    seed: Seed = 0,
    gain: GainOption = "0",
    eps: Eps = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line instead of text.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first recording that cannot be read.")
    ] = False,
    rate: _Rate = None,
    channels: _Channels = None,
    sample_format: _Kind = None,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Inference = "float32",
) -> None:
    """Names the scenes of recordings, of files or as they come.

    A line for each recording or, with --window, for each window of it, as soon as it is known.
    Without --window the first 10 s of each file count. Shorter recordings are repeated. What cannot
    be read is said on stderr, the rest is done, and the exit code is 2.

    JSON: file, with windows start and end in seconds, label, probabilities by class, logits in the
    order of the classes, and masks, how many there were. With --tta probabilities are averages over
    the masks and label is their largest; logits are always those of the unmasked clip.

    \b
    Examples:
      asc predict run/folded.pt *.wav --tta 30 --json
      asc predict run/folded.pt day.flac --window 10 --timeline day.png
      arecord -f S16_LE -r 44100 | asc predict run/folded.pt -
    """
    import os
    import sys

    from asc.checkpoint import load_model
    from asc.compute import pick_device
    from asc.data import audio_files
    from asc.level import check_gain
    from asc.processes import check_devices
    from asc.report.found import Lines, Remarks
    from asc.timeline import STDIN, Failure, Found, Options, Windows, predict_recordings

    target = pick_device(device, precision)
    check_devices(devices, target)
    live, raw = audio.count(STDIN), _raw(rate, channels, sample_format)
    if live > 1:
        raise UserError("standard input, -, can be named once")
    if raw and not live:
        raise UserError("--rate, --channels and --sample-format are of standard input: name it, -")
    if live and (sys.stdin is None or sys.stdin.isatty()):
        raise UserError("standard input is no pipe: let WAV or raw samples come through one")
    windows = None
    if window is not None or (live and len(audio) == 1):
        length = Windows().length if window is None else window
        windows = Windows(length, length / 2 if hop is None else hop)
        if windows.hop > windows.length:
            note(f"{windows.hop - windows.length:g} s between two windows are not heard")
    elif hop is not None or timeline:
        raise UserError(f"{'--timeline' if hop is None else '--hop'} needs --window SECONDS too")
    paths = list(audio_files(audio, recursive=recursive))
    if timeline:  # which takes a while to import
        from asc.report.timelines import check_timeline, write_timeline

        for path in timeline:
            check_timeline(path, len(paths))
    model = load_model(weights, eps=eps)
    check_gain(gain, model.level)
    options = Options(
        windows, gain, tta_of(tta, tta_tolerance), seed, tta_engine, target, precision
    )
    lines = Lines(paths, model.classes, windowed=bool(windows or live), as_json=as_json)
    remarks = Remarks(windows, model.level, strict=strict)
    heard: list[Found] = []

    def each(found: Found | Failure) -> None:
        remarks.look_at(found)
        if isinstance(found, Found):
            if timeline:  # first: Ctrl-C may follow upon the line
                heard.append(found)
            lines.say(found)

    stream = sys.stdin.buffer if live else None
    try:
        predict_recordings(model, paths, options, each, devices=devices, stream=stream, raw=raw)
    except BrokenPipeError:  # whoever reads the lines, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:  # also on Ctrl-C, which is how a stream ends
        remarks.finish()
        for path in timeline or () if heard else ():
            write_timeline(path, heard, model.classes)
    if remarks.failed:
        raise typer.Exit(2)


def _raw(rate: int | None, channels: int | None, kind: SampleFormat | None) -> RawFormat | None:
    """What --rate, --channels and --sample-format say of raw samples; None: there are none.

    Raises:
        UserError: only some of them were given.
    """
    if rate is None and channels is None and kind is None:
        return None
    if rate is None or channels is None or kind is None:
        raise UserError("raw samples need all of --rate, --channels and --sample-format")
    return RawFormat(rate, channels, kind)
