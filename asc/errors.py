"""What to say of the user's input: the one exception that refuses it, and notes on what is odd."""

import logging
from functools import cache
from importlib import import_module
from typing import Any


class UserError(Exception):
    """Bad input from the user.

    The message is one line that names the file or argument, what is wrong with it and, where that
    is not obvious, what to do. The command line prints it and exits with code 2.
    """


@cache
def note(message: str) -> None:
    """Says once, on stderr unless the logger "asc" is set up otherwise, what the user may not know.

    The message is one line that names the file or argument.
    """
    logging.getLogger("asc").warning("asc: note: %s", " ".join(message.split()))


def needed(package: str, extra: str) -> Any:
    """Imports a package that only some commands need.

    Args:
        package: its name, or that of a module in it.
        extra: of fastsep's, which installs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        name = package.partition(".")[0]
        raise UserError(f"needs the package '{name}': pip install 'fastsep[{extra}]'") from error
