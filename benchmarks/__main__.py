"""`python -m benchmarks --out DIR`: runs all suites and writes the report.

The suites run twice: with the allocator tuned (glibc told to keep freed memory, without which page
faults on fresh maps dominate PyTorch's time) and, for the network, as installed. Close everything
else first. Takes about 12 minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asc.speed import KEEP_MEMORY
from benchmarks.report import write_report

SUITES = Path(__file__).parent


def run_suite(tests: list[str], target: Path, environment: dict[str, str]) -> Path:
    command = [sys.executable, "-m", "pytest", *tests, "-q", "--benchmark-only",
               f"--benchmark-json={target}", "--benchmark-columns=min,median,rounds",
               "-p", "no:cacheprovider"]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | environment, cwd=SUITES.parent)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tuned = run_suite([str(SUITES)], Path(folder) / "tuned.json", KEEP_MEMORY)
        installed = run_suite(
            [str(SUITES / "test_network.py")], Path(folder) / "installed.json", {}
        )
        write_report({"tuned": tuned, "as installed": installed}, out)


if __name__ == "__main__":
    main()
