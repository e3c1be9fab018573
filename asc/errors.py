"""The one exception that means "your input, not our code"."""


class UserError(Exception):
    """Bad input from the user.

    The message is one line that names the file or argument, what is wrong with it and, where that
    is not obvious, what to do. The command line prints it and exits with code 2.
    """
