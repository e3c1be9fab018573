"""Runs cases in a process: `python -m benchmarks.gpu.worker OUT DEADLINE I/N SECTION=...`.

Every N-th case runs, from the I-th on. A section is given as name=module:function, the function
returning its cases. A case that raises is recorded. One that kills the process, breaks the CUDA
context or hangs ends this process, and `benchmarks.gpu_suite` starts the next one behind it.
"""

import faulthandler
import gc
import json
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.results import Case, Results, Row

CASE_SECONDS = 120.0
START = "(start)"  # the case that stands for a section whose cases could not be listed


def main(out: Path, deadline: float, shard: slice, sections: list[str]) -> None:
    results = Results(out)
    planned: list[tuple[str, Case]] = []
    for section in sections:
        try:
            planned += [(section.partition("=")[0], case) for case in cases(section)]
        except Exception:
            results.finish(section.partition("=")[0], START, {"error": traceback.format_exc()})
    for section, case in sorted(planned, key=lambda pair: pair[1].rank)[shard]:
        left = deadline - time.time()
        if left <= 0:
            return
        if case.name in results.rows.get(section, {}):
            continue
        results.start(section, case.name)
        # A watchdog thread: it ends the process even where the case waits for a stuck kernel.
        faulthandler.dump_traceback_later(min(left, CASE_SECONDS), exit=True)
        begin = time.monotonic()
        try:
            row: Row = case.run()
            json.dumps(row, allow_nan=False)  # a row that cannot be kept is the case's failure
        except Exception:
            row = {"error": traceback.format_exc()}
        row |= {"seconds": round(time.monotonic() - begin, 2), "peer": case.peer}
        results.finish(section, case.name, row)
        outcome = "FAILED" if "error" in row else "done"
        print(f"{section}: {case.name}: {outcome}, {row['seconds']} s", flush=True)
        release()
        faulthandler.cancel_dump_traceback_later()


def cases(section: str) -> list[Case]:
    """The cases of "name=module:function"."""
    module, function = section.partition("=")[2].split(":")
    return getattr(import_module(module), function)()


def release() -> None:
    """Frees what the case left; raises when it broke the CUDA context."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    first, step = map(int, sys.argv[3].split("/"))
    main(Path(sys.argv[1]), float(sys.argv[2]), slice(first, None, step), sys.argv[4:])
