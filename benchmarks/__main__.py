"""`python -m benchmarks --out DIR`: runs the suites and writes the report.

They run twice: with the allocator tuned (glibc told to keep freed memory, without which page faults
on fresh maps dominate PyTorch's time) and, for the front end and whole networks, as installed.
Close everything else first. Inference takes about 15 minutes, `--training` an hour: PyTorch's steps
are slow.
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
INFERENCE = ["test_block.py", "test_frontend.py", "test_masked.py", "test_network.py"]


def run_suite(arguments: list[str], target: Path, environment: dict[str, str]) -> Path:
    tests = [str(SUITES / a) if a.endswith(".py") else a for a in arguments]
    command = [sys.executable, "-m", "pytest", *tests, "-q", "--benchmark-only",
               f"--benchmark-json={target}", "--benchmark-columns=min,median,rounds",
               "-p", "no:cacheprovider"]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | environment, cwd=SUITES.parent)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--training", action="store_true", help="training steps, not inference")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tuned, installed, name = INFERENCE, ["test_frontend.py", "test_network.py"], "benchmarks"
    if arguments.training:
        tuned, installed, name = (
            ["test_training.py"],
            ["test_training.py", "-k", "step"],
            "training",
        )
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "tuned": run_suite(tuned, Path(folder) / "tuned.json", KEEP_MEMORY),
            "as installed": run_suite(installed, Path(folder) / "installed.json", {}),
        }
        write_report(runs, arguments.out, name)


if __name__ == "__main__":
    main()
