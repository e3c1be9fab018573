"""The README's figures: `python -m benchmarks.quote benchmarks/results/MACHINE` prints them.

Ratios are `over_fastsep`: both systems under the allocator setting that suits each best. A test
holds the README to what this prints.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.report import Row, best, select

SIZES = {  # batch, threads
    (8, 2): "batch 8, 2 threads",
    (1, 2): "batch 1, 2 threads",
    (8, 1): "batch 8, 1 thread",
}
ROUNDS = 20  # at least, see `benchmarks.measure`
PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a machine's results")
    print(passage(parser.parse_args().folder))


def passage(folder: Path) -> str:
    """The machine, the network's table and a sentence on its parts, in Markdown."""
    content = json.loads((folder / "benchmarks.json").read_text())
    head, *lines = (f"| {' | '.join(line)} |" for line in network_table(content))
    table = "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines])
    return "\n\n".join([wrap(caption(content["machine"])), table, wrap(parts(content["results"]))])


def caption(machine: dict[str, Any]) -> str:
    head, *changes = machine.get("commit", "").split(" ", 1)
    tree = " ".join([f", commit {head[:10]}", *changes]) if head else ""
    return (
        f"{machine['processor']}, {machine['fma_gflops_1_thread']:.0f} GFLOP/s of float32 "
        f"multiply-adds a core, torch {machine['versions']['torch']}, {machine['date']}{tree}, "
        f"medians of {ROUNDS} rounds or more:"
    )


def network_table(content: dict[str, Any]) -> list[list[str]]:
    """Our time, shares of the peak, then ratios, the fastest system first; the last line is PyTorch
    where nothing is tuned. Results that hold errors get a column of them."""
    rows = select(content["results"], {"case": "network"})
    errors = all("relative_error" in row for row in rows)

    def line(name: str, system: str, key: str, **where: str) -> list[str]:
        found = [best(rows, (system,), {"batch": batch, "threads": threads, **where})
                 for batch, threads in SIZES]  # fmt: skip
        present = [row for row in found if row is not None]
        cells = [AS_TEXT.get(key, times)(row[key]) for row in present]
        return [name, *cells, *([f"{present[0]['relative_error']:.0e}"] if errors else [])]

    ratios = {row["system"]: row["over_fastsep"] for row in select(rows, {"batch": 8, "threads": 2})
              if not row["system"].startswith("fastsep, float32")}  # fmt: skip
    versions = content["machine"]["versions"]
    names = {system: f"{system} {minor(versions[package])}" for system, package in PACKAGES.items()}
    return [
        ["time / fastsep's float32", *SIZES.values(), *(["largest error"] if errors else [])],
        line("fastsep, float32, time a clip", "fastsep, float32", "median_ms_per_clip"),
        line("fastsep, float32, share of the FMA peak", "fastsep, float32", "share_of_peak"),
        line("fastsep, AVX2 forced, share of AVX2's FMA peak", "fastsep, float32, AVX2",
             "share_of_peak"),
        *(line(names.get(system, system), system, "over_fastsep")
          for system in sorted(ratios, key=lambda system: ratios[system])),
        line("eager, NCHW, allocator as installed", "eager, NCHW", "over_fastsep_same_allocator",
             allocator="as installed"),
    ]  # fmt: skip


def parts(rows: list[Row]) -> str:
    ours = select(rows, {"system": "fastsep"})
    first = [row["share_of_peak"] for row in select(ours, {"case": "block 1"})]
    blocks = ("block 2", "block 3", "block 4")
    others = [row["share_of_peak"] for row in ours if row["case"] in blocks]
    head, logmel = (select(ours, {"case": case, "threads": 2})[0]["median_ms_per_clip"]
                    for case in ("head", "log-mel"))  # fmt: skip
    return (
        f"Single blocks from NCHW to NCHW maps run at {100 * min(others):.0f} to "
        f"{share(max(others))} of the peak (block 1, all memory: {share(max(first))}). Pooling and "
        f"MLP take {head:.2f} ms of a clip, the log-mel front end {logmel:.1f} ms."
    )


def wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 100))


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def milliseconds(value: float) -> str:
    return f"{value:.1f} ms"


def times(ratio: float) -> str:
    """Two digits: 0.63x, 4.9x, 12x."""
    return f"{ratio:.{0 if ratio >= 9.95 else 1 if ratio >= 0.995 else 2}f}x"


AS_TEXT = {"share_of_peak": share, "median_ms_per_clip": milliseconds}  # ratios else


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


if __name__ == "__main__":
    main()
