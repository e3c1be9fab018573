"""`asc export`."""

from pathlib import Path
from typing import Annotated

import typer

from asc.cli.options import Weights
from asc.export import Format


def command(
    weights: Weights,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            show_default=False,
            help="float16: folded weights, for asc or ten lines of PyTorch, which are printed; "
            "safetensors: float32; onnx: for ONNX Runtime and others; torch-export: a program of "
            "PyTorch's own operators.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(show_default=False, help="File for the format; -: standard output."),
    ] = None,
    front_end: Annotated[
        bool,
        typer.Option(
            "--front-end", help="Of onnx: take samples of 44.1 kHz, not log-mels of them."
        ),
    ] = False,
    package: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Instead of a file: a folder, new or empty, with the functions that DCASE 2025 "
            "Task 1 asks for, predict(file_paths, ...) and others; its name is the package's.",
        ),
    ] = None,
) -> None:
    """Writes a network for other programs.

    Calibrated weights stay calibrated. What is written is opened by the program that it is for and
    run on noise, and kept only if the logits are those of asc to rounding.

    \b
    Example:
      asc export run/folded.pt --format onnx --front-end --out network.onnx
    """
    import sys

    from asc.checkpoint import load_model
    from asc.errors import UserError
    from asc.export import formats, plain
    from asc.export.package import check_package, write_package
    from asc.files import atomic, check_file, is_stdout
    from asc.report.tables import printable

    if package is not None:
        if form is not None or out is not None or front_end:
            raise UserError("--package takes no --format, --out or --front-end")
        check_package(package)
        difference, largest = write_package(load_model(weights), package)
        print(f"{printable(package)}: a package;", _compared(difference, largest))
        return
    if form is None or out is None:
        raise UserError("--format and --out are needed, or --package")
    check_file(out, weights)
    formats.check(form, out, front_end)
    made = formats.exported(load_model(weights), form, out, front_end=front_end)
    with atomic(out) as file:
        file.write(made.content)
    said = sys.stderr if is_stdout(out) else sys.stdout
    size = f"{len(made.content)} bytes ({len(made.content) / 1024:.1f} KiB)"
    compared = _compared(made.difference, made.largest)
    print(f"{printable(out)}: {form}, {size}; {compared}", file=said)
    if form == "float16" and not is_stdout(out):
        print(f"\n{plain.lines(out)}", file=said)


def _compared(difference: float, largest: float) -> str:
    return f"on noise its logits differ from asc's by {difference:.2g} at most, of {largest:.3g}"
