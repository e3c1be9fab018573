"""What to say of the user's input: the one exception that refuses it, and notes on what is odd."""

import logging
from functools import cache


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
