"""`python -m benchmarks.gpu_suite --out DIR`: everything a CUDA machine can tell, in 9 minutes.

Checks the kernels, tunes them, and times them beside eager PyTorch (cuDNN) and torch.compile. DIR
gets gpu_suite.json, rewritten after every case, gpu_suite.png and what tuning chose. A later run
with the same DIR goes on where this one stopped and tries again what failed. Exit code: 0, 1 when
something of ours failed, 2 without a CUDA device.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.report import write_report
from benchmarks.gpu.results import Results
from benchmarks.gpu.worker import START, cases

ROOT = Path(__file__).parents[1]
SECTIONS = {
    name: f"{name}=benchmarks.gpu.{home}"
    for name, home in {
        "machine": "machine:cases",
        "correctness": "correctness:cuda_cases",
        "compile": "tune:compile_cases",
        "tune": "tune:cases",
        "operator": "layers:operator_cases",
        "blocks": "layers:block_cases",
        "network": "network:network_cases",
        "training": "network:training_cases",
        "tta": "network:tta_cases",
    }.items()
}
SHARED_OUT = ["correctness"], ["compile"]  # to processes side by side: compiling keeps cores busy
STAGES = (
    ["machine"],
    *SHARED_OUT,
    ["tune"],
    ["network", "training", "tta", "blocks", "operator"],
)
TUNING = ["compile"], ["tune"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--minutes", type=float, default=9.0, help="start nothing after so long")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 14),
                        help="processes for what times nothing")  # fmt: skip
    arguments = parser.parse_args()
    deadline = time.time() + 60 * arguments.minutes
    if not torch.cuda.is_available():
        print("benchmarks.gpu_suite needs a CUDA device, and PyTorch sees none", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out)
    results.forget_errors(arguments.sections)
    for stage in STAGES:
        chosen = [SECTIONS[name] for name in stage if name in arguments.sections]
        run = partial(run_shards, jobs=arguments.jobs) if stage in SHARED_OUT else run_sections
        run(results, chosen, deadline, tune=stage in TUNING)
    left_out = unfinished(results, [SECTIONS[name] for name in arguments.sections])
    write_report(results, left_out)
    return exit_code(results)


def run_shards(
    results: Results, sections: list[str], deadline: float, tune: bool, jobs: int
) -> None:
    """Runs sections in so many processes at once, each with results and tuning of its own."""
    with tempfile.TemporaryDirectory(dir=results.path.parent) as folder:
        shards = []
        for i in range(jobs):
            (own := Path(folder) / str(i)).mkdir()
            shards.append(Results(own))
            shards[i].rows = {name: dict(rows) for name, rows in results.rows.items()}
            shards[i].save()
        with ThreadPoolExecutor(jobs) as pool:
            for _ in pool.map(
                lambda i: run_sections(shards[i], sections, deadline, tune, (i, jobs)), range(jobs)
            ):
                pass
        for shard in shards:
            for name, rows in shard.rows.items():
                results.rows.setdefault(name, {}).update(rows)
        results.save()


def run_sections(
    results: Results,
    sections: list[str],
    deadline: float,
    tune: bool,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Runs sections (name=module:function) in a child process, and again after what kills it.

    shard: (i, n), to run every n-th case from the i-th on.
    """
    tuning = results.path.parent / "tuning"
    environment = os.environ | {"FASTSEP_CACHE_DIR": str(tuning.resolve())}
    environment.pop("FASTSEP_TUNE", None)
    if tune:
        environment["FASTSEP_TUNE"] = "1"
    command = [sys.executable, "-m", "benchmarks.gpu.worker", str(results.path.parent),
               str(deadline), "{}/{}".format(*shard), *sections]  # fmt: skip
    while sections and (left := deadline - time.time()) > 0:
        before = results.count()
        with tempfile.TemporaryFile() as errors:
            try:
                code = subprocess.run(command, cwd=ROOT, env=environment, stderr=errors,
                                      timeout=left + 15).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = -9
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-4000:]
        results.load()
        if code == 0:
            return
        died = {"error": f"{said}\nthe process ended with code {code}", "peer": False}
        if results.running is not None:
            section, name = results.running
            if time.time() < deadline - 0.5:  # else the watchdog ended it for want of time
                results.finish(section, name, died | {"peer": is_peer(sections, section, name)})
            results.running = None
            results.save()
        elif results.count() == before:  # it does not even start
            for section in sections:
                results.finish(section.partition("=")[0], START, died)
            return


def is_peer(sections: list[str], section: str, name: str) -> bool:
    (home,) = [s for s in sections if s.startswith(f"{section}=")]
    return any(case.peer for case in cases(home) if case.name == name)


def unfinished(results: Results, sections: list[str]) -> list[str]:
    """What there was no time for, as "section: case"."""
    listed: list[str] = []
    for spec in sections:
        section = spec.partition("=")[0]
        rows = results.rows.get(section, {})
        if START in rows:  # its cases cannot be listed, which the report says
            continue
        listed += [f"{section}: {c.name}" for c in cases(spec) if c.name not in rows]
    return listed


def exit_code(results: Results) -> int:
    return int(any(not row.get("peer", False) for _, _, row in results.failures()))


if __name__ == "__main__":
    sys.exit(main())
