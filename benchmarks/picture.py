"""The README's picture: `python -m benchmarks.picture benchmarks/results/MACHINE` draws it there.

How long the whole network takes on a clip in every system of the machine's results, each under the
allocator setting that suits it best. Text stays text, in a grey that light and dark pages show.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.quote import PACKAGES, minor
from benchmarks.report import Row, fastest

CASE = {"case": "network", "batch": 8, "threads": 2}
GREY, OURS, THEIRS = "#7d8590", "#2f81f7", "#a8b0b9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a machine's results")
    folder = parser.parse_args().folder
    content = json.loads((folder / "benchmarks.json").read_text())
    draw(bars(content), folder / "network.svg")


def bars(content: dict[str, Any]) -> list[tuple[str, float]]:
    """Systems and their ms a clip, the fastest first; forced instruction sets are left out."""
    versions = content["machine"]["versions"]

    def name(row: Row) -> str:
        system = row["system"].replace("eager", "PyTorch, eager")
        known = PACKAGES.get(system)
        return f"{system} {minor(versions[known])}" if known else system

    rows = [row for row in fastest(content["results"], CASE) if "AVX2" not in row["system"]]
    return sorted(((name(row), row["median_ms_per_clip"]) for row in rows), key=lambda bar: bar[1])


def draw(times: list[tuple[str, float]], target: Path) -> None:
    """The bars as an SVG file, the same for the same times."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "network"}):
        figure = Figure(figsize=(7.2, 0.34 * len(times) + 0.5), layout="constrained")
        axes = figure.subplots()
        names, values = zip(*times, strict=True)
        colours = [OURS if name.startswith("fastsep") else THEIRS for name in names]
        drawn = axes.barh(names, values, color=colours, height=0.66)
        axes.bar_label(drawn, [f"{value:.1f} ms" for value in values], padding=4, color=GREY)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * max(values))
        axes.set_title(
            "Time for a clip of 10 s, in batches of 8 by 2 threads",
            color=GREY,
            loc="left",
            fontsize=11,
        )
        axes.tick_params(axis="y", length=0, labelcolor=GREY)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        figure.savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
