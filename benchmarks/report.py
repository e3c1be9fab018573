"""Turns the suites' JSON into a table, CSV, JSON and a roofline plot."""

import csv
import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peaks import copy_bandwidth, fma_peak

Row = dict[str, Any]
PACKAGES = ("torch", "onnxruntime", "openvino", "numpy")
CLIP_BYTES = 23e6  # smallest traffic of a clip with float32 maps, see `roofline`


def write_report(runs: dict[str, Path], out: Path) -> None:
    """runs: allocator setting -> pytest-benchmark JSON. Prints the tables and writes into `out`
    benchmarks.json, benchmarks.csv and roofline.png."""
    rows = [row for setting, path in runs.items() for row in read(setting, path)]
    machine = describe_machine()
    content = {"machine": machine, "results": rows}
    (out / "benchmarks.json").write_text(json.dumps(content, indent=1) + "\n")
    names = ["allocator", "case", "system", "batch", "threads", "isa"]
    names += ["median_ms_per_clip", "min_ms_per_clip", "gflops", "peak_gflops", "share_of_peak"]
    names += ["over_fastsep"]
    with (out / "benchmarks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    console = Console(width=110)
    console.print(*(f"{key}: {value}\n" for key, value in machine.items()), sep="")
    for table in tables(rows):
        console.print(table)
    roofline(rows, machine, out / "roofline.png")


def read(setting: str, path: Path) -> list[Row]:
    """One row a benchmark; over_fastsep is its median over that of fastsep float32 in the same
    case and process, so that a bar above 1 is how many times faster fastsep is."""
    rows: list[Row] = []
    for entry in json.loads(path.read_text())["benchmarks"]:
        info, stats = entry["extra_info"], entry["stats"]
        row = {"allocator": setting, "case": info.get("case", "network"), **info}
        row["median_ms_per_clip"] = 1e3 * stats["median"] / info["batch"]
        row["min_ms_per_clip"] = 1e3 * stats["min"] / info["batch"]
        row["gflops"] = info["flop"] / stats["median"] * 1e-9
        row["share_of_peak"] = row["gflops"] / info["peak_gflops"]
        rows.append(row)
    for row in rows:
        key = ("case", "batch", "threads")
        for other in rows:
            ours = other["system"] in ("fastsep", "fastsep, float32")
            if ours and all(other[k] == row[k] for k in key):
                row["over_fastsep"] = row["median_ms_per_clip"] / other["median_ms_per_clip"]
    return rows


def describe_machine() -> dict[str, Any]:
    """What the numbers belong to."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((x.split(":")[1].strip() for x in info.splitlines() if "model name" in x), "")
    versions = {}
    for package in ("fastsep", *PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    isa = "avx512" if "avx512vl" in info else "avx2" if "avx2" in info else "baseline"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model or platform.processor(),
        "python": platform.python_version(),
        "versions": versions,
        "fma_gflops_1_thread": fma_peak(isa, 1),
        "fma_gflops_2_threads": fma_peak(isa, 2),
        "copy_gbps_1_thread": copy_bandwidth(1),
        "copy_gbps_2_threads": copy_bandwidth(2),
    }


def tables(rows: list[Row]) -> list[Table]:
    """One table a case, the fastest system first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["allocator"], row["case"], row["batch"], row["threads"]), []).append(
            row
        )
    result = []
    for (setting, case, batch, threads), members in groups.items():
        table = Table(title=f"{case}, batch {batch}, {threads} threads, allocator {setting}",
                      title_justify="left")  # fmt: skip
        table.add_column("system")
        for column in ("ms a clip", "share of FMA peak", "time / fastsep's"):
            table.add_column(column, justify="right")
        for row in sorted(members, key=lambda row: row["median_ms_per_clip"]):
            share = f"{100 * row['share_of_peak']:.0f} %" if row["flop"] else "-"
            ratio = f"{row['over_fastsep']:.2f}" if "over_fastsep" in row else "-"
            table.add_row(row["system"], f"{row['median_ms_per_clip']:.2f}", share, ratio)
        result.append(table)
    return result


def roofline(rows: list[Row], machine: dict[str, Any], target: Path) -> None:
    """Network results under the roof of arithmetic and bandwidth: what each system reaches, placed
    at the intensity of a pass that reads and writes every block's maps once."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = {"allocator": "tuned", "case": "network", "batch": 8, "threads": 2}
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    peak, bandwidth = machine["fma_gflops_2_threads"], machine["copy_gbps_2_threads"]
    intensity = sorted([peak / bandwidth, *(2**e for e in range(-3, 9))])
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.loglog(intensity, [min(peak, bandwidth * i) for i in intensity], color="black",
                label=f"float32 roof: {peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s")  # fmt: skip
    for row in sorted(chosen, key=lambda row: -row["gflops"]):
        at = row["flop"] / row["batch"] / CLIP_BYTES
        axes.plot(at, row["gflops"], "o", label=f"{row['system']}: {row['gflops']:.0f} GFLOP/s")
    axes.set_xlabel("FLOP a byte (one read and one write of every block's maps)")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Whole network, batch 8, 2 threads, tuned allocator")
    axes.legend(fontsize="small")
    figure.savefig(target, dpi=150)
