"""From the suites' JSON to rows, and from rows to tables, CSV, JSON and a roofline plot."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine

Row = dict[str, Any]
COLUMNS = ("allocator", "case", "system", "batch", "threads", "isa", "rounds",
           "median_ms_per_clip", "min_ms_per_clip", "relative_error", "gflops", "peak_gflops",
           "share_of_peak", "over_fastsep", "over_fastsep_same_allocator")  # fmt: skip
MEMORY = ("saved_bytes", "peak_bytes")  # of training
PASSES = ("passes",)  # of masked copies, in forward passes
OURS = ("fastsep", "fastsep, float32")
CLIP_BYTES = 23e6  # smallest traffic of a clip with float32 maps, see `roofline`


def write_report(runs: dict[str, Path], out: Path, name: str = "benchmarks") -> None:
    """runs: allocator setting -> pytest-benchmark JSON. Prints the tables and writes into `out`
    NAME.json and NAME.csv; of whole networks in inference roofline.png; of training how long."""
    rows = [row for setting, path in runs.items() for row in read(setting, path)]
    compare(rows)
    content = four_digits({"machine": machine.describe(), "results": rows})
    save(content, out, name)
    console = Console(width=110)
    console.print(*(f"{key}: {value}\n" for key, value in content["machine"].items()), sep="")
    for table in tables(content["results"]):
        console.print(table)
    if select(content["results"], {"case": "network"}):
        roofline(content["results"], content["machine"], out / "roofline.png")
    for line in hours(content["results"]):
        console.print(line, highlight=False)


def hours(rows: list[Row]) -> list[str]:
    """The report's training by each system: 200 epochs of the 13 962 clips of its training list,
    in steps of 32; log-mels, validation and the loop around the step are not counted."""
    chosen = sorted(fastest(rows, {"case": "training step", "batch": 32, "threads": 2}),
                    key=lambda row: row["median_ms_per_clip"])  # fmt: skip
    return [
        f"200 epochs of 13 962 clips, batch 32, 2 threads: {row['system']} "
        f"{200 * 13962 * row['median_ms_per_clip'] / 3.6e6:.1f} hours"
        for row in chosen
    ]


def save(content: dict[str, Any], out: Path, name: str = "benchmarks") -> None:
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    with (out / f"{name}.csv").open("w", newline="") as file:
        columns = [*COLUMNS, *measured((*MEMORY, *PASSES), content["results"])]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(content["results"])


def read(setting: str, path: Path) -> list[Row]:
    """One row a benchmark of a run under one allocator setting."""
    rows = []
    for entry in json.loads(path.read_text())["benchmarks"]:
        info, stats = entry["extra_info"], entry["stats"]
        row = {"allocator": setting, "case": info.get("case", "network"), **info}
        row["rounds"] = stats["rounds"]
        row["median_ms_per_clip"] = 1e3 * stats["median"] / info["batch"]
        row["min_ms_per_clip"] = 1e3 * stats["min"] / info["batch"]
        row["gflops"] = info["flop"] / stats["median"] * 1e-9
        row["share_of_peak"] = row["gflops"] / info["peak_gflops"]
        rows.append(row)
    return rows


def compare(rows: list[Row]) -> None:
    """Completes rows by how many times fastsep's float32 time they take: `over_fastsep`, each of
    the two under the allocator setting that suits it best, the same in both rows of a system; and
    `over_fastsep_same_allocator`, both under the row's."""
    for row in rows:
        theirs = best(rows, (row["system"],), case_of(row))
        ours = best(rows, OURS, case_of(row))
        if theirs is not None and ours is not None:
            row["over_fastsep"] = theirs["median_ms_per_clip"] / ours["median_ms_per_clip"]
        beside = best(rows, OURS, case_of(row) | {"allocator": row["allocator"]})
        if beside is not None:
            times = row["median_ms_per_clip"] / beside["median_ms_per_clip"]
            row["over_fastsep_same_allocator"] = times


def case_of(row: Row) -> Row:
    return {key: row[key] for key in ("case", "batch", "threads")}


def measured(keys: Sequence[str], rows: list[Row]) -> list[str]:
    """Those that any of the rows has."""
    return [key for key in keys if any(row.get(key) is not None for row in rows)]


def select(rows: list[Row], where: Row) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def best(rows: list[Row], systems: tuple[str, ...], where: Row) -> Row | None:
    """The fastest row of these systems among those that match."""
    chosen = [row for row in select(rows, where) if row["system"] in systems]
    return min(chosen, key=lambda row: row["median_ms_per_clip"], default=None)


def fastest(rows: list[Row], where: Row) -> Iterator[Row]:
    """Every system that matches, under the allocator setting that suits it best."""
    for system in dict.fromkeys(row["system"] for row in select(rows, where)):
        row = best(rows, (system,), where)
        assert row is not None
        yield row


def four_digits(value: Any) -> Any:
    """More than four significant digits of a measurement are noise."""
    if isinstance(value, dict):
        return {key: four_digits(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [four_digits(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def tables(rows: list[Row]) -> list[Table]:
    """One table a case: every system at its best, the fastest first."""
    result = []
    cases = {tuple(case_of(row).values()): case_of(row) for row in rows}
    for (case, batch, threads), where in cases.items():
        title = f"{case}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
        table = Table(title=title, title_justify="left")
        table.add_column("system")
        columns = ["ms a clip", "error", "share of FMA peak", "time / fastsep's", "allocator"]
        memory = measured(MEMORY, select(rows, where))
        passes = measured(PASSES, select(rows, where))
        sizes = [f"{key.split('_')[0]}, MB a clip" for key in memory]
        for column in (*columns, *sizes, *("in forward passes" for _ in passes)):
            table.add_column(column, justify="right")
        for row in sorted(fastest(rows, where), key=lambda row: row["median_ms_per_clip"]):
            share = f"{100 * row['share_of_peak']:.0f} %" if row["flop"] else "-"
            times = f"{row['over_fastsep']:.2f}" if "over_fastsep" in row else "-"
            ms, error = f"{row['median_ms_per_clip']:.2f}", f"{row['relative_error']:.0e}"
            sizes = ["-" if (size := row.get(key)) is None else f"{size / row['batch'] / 1e6:.1f}"
                     for key in memory]  # fmt: skip
            counts = [f"{row[key]:.2f}" for key in passes]
            table.add_row(row["system"], ms, error, share, times, row["allocator"], *sizes, *counts)
        result.append(table)
    return result


def roofline(rows: list[Row], limits: dict[str, Any], target: Path) -> None:
    """Network results under the roof of arithmetic and bandwidth: what each system reaches, placed
    at the intensity of a pass that reads and writes every block's maps once."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = list(fastest(rows, {"case": "network", "batch": 8, "threads": 2}))
    peak, bandwidth = limits["fma_gflops_2_threads"], limits["copy_gbps_2_threads"]
    intensity = sorted([peak / bandwidth, *(2**e for e in range(-3, 9))])
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.loglog(intensity, [min(peak, bandwidth * i) for i in intensity], color="black",
                label=f"float32 roof: {peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s")  # fmt: skip
    for row in sorted(chosen, key=lambda row: -row["gflops"]):
        at = row["flop"] / row["batch"] / CLIP_BYTES
        axes.plot(at, row["gflops"], "o", label=f"{row['system']}: {row['gflops']:.0f} GFLOP/s")
    axes.set_xlabel("FLOP a byte (one read and one write of every block's maps)")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Whole network, batch 8, 2 threads, every system's better allocator setting")
    axes.legend(fontsize="small")
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
