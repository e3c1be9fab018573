"""The command line as a whole. Bad input: one line on stderr, exit code 2."""

import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from asc.cli import calibrate, compare, demo, evaluate, export, info, predict, submit, synth, train
from asc.errors import UserError

_EXIT_CODES = """\b
Exit codes:
  0    done
  2    bad input, or something that cannot be read, written or had; a line on
       stderr says what
  130  interrupted (Ctrl-C)
  1    a fault of asc itself, with a traceback, or nobody reads its output
"""

app = typer.Typer(
    help="Acoustic scene classification with separable convolutions (DCASE 2021 Task 1A).",
    epilog=_EXIT_CODES,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for module in (demo, synth, train, evaluate, compare, predict, calibrate, export, submit, info):
    app.command(module.__name__.rpartition(".")[2])(module.command)


_NO_MEMORY = re.compile("out of memory|(can't|cannot|not enough memory to) allocate", re.IGNORECASE)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (sys.argv's without one) and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the locale's encoding does not have
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_environment()
        words = list(sys.argv[1:] if argv is None else argv)
        return app(args=words or ["--help"], prog_name="asc", standalone_mode=False) or 0
    except typer.BadParameter as error:
        return _failed(_as_typed(error))
    except typer.TyperException as error:  # the command line itself
        return _failed(error.format_message())
    except UserError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(_in_words(error))
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        return _failed("there is not enough memory (PyTorch could not get what it asked for)")


def _check_environment() -> None:
    """UserError for a backend or an instruction set that is asked for but cannot run."""
    if os.environ.get("FASTSEP_BACKEND") or os.environ.get("FASTSEP_CPU_ISA"):
        try:
            import fastsep  # noqa: F401  (reads them)
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error).splitlines()[0]) from error


def _in_words(error: OSError) -> str:
    if error.filename is None or not error.strerror:
        return str(error)
    name = error.filename
    return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror}"


def _as_typed(error: typer.BadParameter) -> str:
    """With the value that was typed, which Typer's own messages leave out."""
    details = getattr(error.__cause__, "errors", None)  # a ValidationError, whose import takes long
    if details is not None:
        (first, *_) = details()
        bounds = first.get("ctx", {})
        expected = {
            "greater_than_equal": f"at least {bounds.get('ge')}",
            "less_than_equal": f"at most {bounds.get('le')}",
            "int_parsing": "an integer",
            "float_parsing": "a number",
        }.get(first["type"])
        if expected is not None:
            error.message = f"it must be {expected}, not {first['input']!r}"
        else:
            error.message = first["msg"].removeprefix("Value error, ")
    return error.format_message()


def _failed(message: str) -> int:
    if message:  # empty where the help was shown instead
        print("asc:", " ".join(message.split()), file=sys.stderr)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        import torch

        import fastsep

        print(f"asc {fastsep.__version__} (PyTorch {torch.__version__})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and exit.")
    ] = False,
) -> None:
    pass
