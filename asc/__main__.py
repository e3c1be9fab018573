"""`python -m asc`: the `asc` command."""

import sys

from asc.cli.app import main

sys.exit(main())
