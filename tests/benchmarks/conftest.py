"""Benchmarks are not installed: their tests find them in the repository, at the end of the path, so
that fastsep is the one that is installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
