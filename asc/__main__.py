"""`python -m asc`: the `asc` command, or one line about what it needs."""

import sys


def main() -> int:
    """Runs the command line of the process and returns its exit code."""
    try:
        from asc.cli.app import main

        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "asc", "fastsep"):
            raise
        print(f"asc: needs the package '{package}': pip install 'fastsep[asc]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
