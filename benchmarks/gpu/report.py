"""Shares of the machine's limits, goals, tables and the plot, all from the rows of a run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.machine import COPY, MATRIX
from benchmarks.gpu.results import Results, Row
from benchmarks.gpu.timing import PRECISIONS
from benchmarks.report import four_digits

Rows = list[Row]
OURS, EAGER, COMPILED = "fastsep", "eager", "torch.compile"


@dataclass(frozen=True)
class Goal:
    """value: None where it was not measured. at_least: the better is larger."""

    name: str
    value: float | None
    target: float
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def write_report(results: Results, left_out: list[str]) -> None:
    """Completes gpu_suite.json, draws gpu_suite.png beside it and prints, the goals last."""
    rows = timings(results)
    judged = goals(rows)
    results.save(left_out=left_out, goals=[asdict(goal) | {"met": goal.met} for goal in judged])
    console = Console(width=110)
    for name, row in results.rows.get("machine", {}).items():
        known = {key: value for key, value in row.items() if key not in ("seconds", "peer")}
        if "error" not in row:
            console.print(f"{name}: {known}", highlight=False)
    console.print(figures(rows))
    plot(rows, results.path.with_suffix(".png"), console)
    if left_out:
        console.print(f"no time for {len(left_out)} cases:")
        for name in left_out:
            console.print(f"  {name}", highlight=False)
    console.print(states(results, left_out), goal_table(judged))


def timings(results: Results) -> Rows:
    """The rows that time something, completed in place: microseconds a clip and the shares of the
    time that a copy of the least traffic and the bare arithmetic would take on this machine."""
    machine = results.rows.get("machine", {})
    bandwidth = machine.get(COPY, {}).get("GB/s")
    rows = [row for section in results.rows.values() for row in section.values() if "ms" in row]
    for row in rows:
        row["us_per_clip"] = four_digits(1e3 * row["ms"] / row["batch"])
        rate = machine.get(MATRIX.format(row["precision"]), {}).get("TFLOP/s")
        if bandwidth:
            row["share_of_copy"] = four_digits(row["bytes"] / bandwidth * 1e-6 / row["ms"])
        if rate:
            row["share_of_math"] = four_digits(row["flop"] / rate * 1e-9 / row["ms"])
    return rows


def best(rows: Rows, family: str, key: str = "us_per_clip", **where: Any) -> Row | None:
    """The row smallest in `key` of the systems of a family, among those that match `where`."""
    chosen = [
        row
        for row in rows
        if row["system"].startswith(family) and all(row[k] == v for k, v in where.items())
    ]
    return min(chosen, key=lambda row: row[key], default=None)


def ratio(a: Row | None, b: Row | None, key: str = "us_per_clip") -> float | None:
    return a[key] / b[key] if a is not None and b is not None else None


def goals(rows: Rows) -> list[Goal]:
    result = []
    where: Row
    for precision in PRECISIONS:
        where = {"subject": "network", "batch": 256, "precision": precision}
        ours = best(rows, OURS, **where)
        name = f"network, batch 256, {precision}: "
        value = None if ours is None else ours["us_per_clip"]
        target = 20.0 if precision == "IEEE" else 11.0
        result += [
            Goal(name + "us a clip", value, target),
            Goal(name + "times eager's best", ratio(best(rows, EAGER, **where), ours), 8, True),
            Goal(name + "times torch.compile", ratio(best(rows, COMPILED, **where), ours), 3, True),
        ]
    for i in range(1, 5):
        for precision in PRECISIONS:
            where = {"subject": f"operator, block {i}", "batch": 256, "precision": precision}
            ours = best(rows, OURS, **where)
            fastest = best(rows, EAGER, **where)
            smallest = best(rows, EAGER, "peak_bytes", **where)
            name = f"operator, block {i}, fwd + bwd, batch 256, {precision}: "
            memory = ratio(ours, smallest, "peak_bytes")
            result += [
                Goal(name + "times eager's best", ratio(fastest, ours), 4, True),
                Goal(name + "share of eager's memory", memory, 1 / 3),
            ]
    return result


def figures(rows: Rows) -> Table:
    """One line for what is done, its batch and precision: the best of ours beside the others'."""
    table = Table(title="microseconds a clip", title_justify="left")
    for column in ("", "batch", "precision"):
        table.add_column(column)
    for column in ("fastsep", "of copy", "of math", "eager / ours", "compile / ours"):
        table.add_column(column, justify="right")
    groups = dict.fromkeys((row["subject"], row["batch"], row["precision"]) for row in rows)
    for subject, batch, precision in groups:
        where: Row = {"subject": subject, "batch": batch, "precision": precision}
        ours = best(rows, OURS, **where)
        if ours is None:
            continue
        shares = [ours.get(key) for key in ("share_of_copy", "share_of_math")]
        ratios = [ratio(best(rows, family, **where), ours) for family in (EAGER, COMPILED)]
        table.add_row(subject, str(batch), precision, f"{ours['us_per_clip']:.1f}",
                      *("-" if share is None else f"{100 * share:.0f} %" for share in shares),
                      *("-" if value is None else f"{value:.2f}" for value in ratios))  # fmt: skip
    return table


def states(results: Results, left_out: list[str]) -> Table:
    """One line a section and one for each of its failures."""
    table = Table(title="sections", title_justify="left")
    for column in ("section", "done", "failed", "no time", "seconds", "first failures"):
        table.add_column(column)
    for section, rows in results.rows.items():
        failed = {name: row for name, row in rows.items() if "error" in row}
        missing = sum(name.startswith(f"{section}: ") for name in left_out)
        seconds = sum(row.get("seconds", 0) for row in rows.values())
        reasons = [
            f"{name}{' (peer)' if row.get('peer') else ''}: {last_line(row['error'])}"
            for name, row in failed.items()
        ]
        table.add_row(section, str(len(rows) - len(failed)), str(len(failed)), str(missing),
                      f"{seconds:.0f}", "\n".join(reasons[:8]))  # fmt: skip
    return table


def last_line(error: str) -> str:
    return (error.strip().splitlines() or [""])[-1][:160]


def goal_table(judged: list[Goal]) -> Table:
    table = Table(title="goals", title_justify="left")
    table.add_column("goal")
    for column in ("target", "measured", "met"):
        table.add_column(column, justify="right")
    words = {True: "yes", False: "NO", None: "-"}
    for goal in judged:
        target = f"{'>=' if goal.at_least else '<='} {goal.target:.3g}"
        value = "-" if goal.value is None else f"{goal.value:.3g}"
        table.add_row(goal.name, target, value, words[goal.met])
    return table


def plot(rows: Rows, target: Path, console: Console) -> None:
    """Bars of the whole network at batch 256; nothing to draw or nothing to draw with is said."""
    try:
        import matplotlib
    except ImportError:
        console.print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = [row for row in rows if row["subject"] == "network" and row["batch"] == 256]
    if not chosen:
        console.print("no plot: the network was not timed at batch 256")
        return
    chosen.sort(key=lambda row: (PRECISIONS.index(row["precision"]), row["us_per_clip"]))
    labels = [f"{row['system']}, {row['precision']}" for row in chosen]
    colours = ["C0" if row["system"].startswith(OURS) else "C7" for row in chosen]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.bar_label(
        axes.barh(labels, [row["us_per_clip"] for row in chosen], color=colours), fmt="%.1f"
    )
    axes.set_xscale("log")
    axes.margins(x=0.15)  # room for the labels
    axes.invert_yaxis()
    axes.set_xlabel("microseconds a clip, whole network, batch 256")
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
