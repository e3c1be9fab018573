"""`python -m benchmarks.loss_curves RUN RUN ... --out FOLDER`: losses of runs of `asc train`.

Writes loss_curves.csv, the loss of every step of each run, and loss_curves.png. Runs of one seed
that differ in `--layers` alone begin with the same losses; then rounding, which grows from step to
step in any training, parts them.
"""

import argparse
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the curves")
    arguments = parser.parse_args()
    curves = {run.name: losses(run) for run in arguments.runs}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "loss_curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *curves])
        for step in sorted(set().union(*curves.values())):
            writer.writerow([step, *(curve.get(step, "") for curve in curves.values())])
    plot(curves, arguments.out / "loss_curves.png")


def losses(run: Path) -> dict[int, float]:
    """Step -> training loss, as a run has logged it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = {path.parent for path in run.rglob("events.out.tfevents.*")}
    if not folders:
        raise SystemExit(f"{run} holds no TensorBoard log; name the folder of a run of asc train")
    curve: dict[int, float] = {}
    for folder in sorted(folders):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        if "train/loss_step" in events.Tags()["scalars"]:
            curve |= {e.step: e.value for e in events.Scalars("train/loss_step")}
    return curve


def plot(curves: dict[str, dict[int, float]], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 6), sharex=True, layout="constrained"
    )
    for name, curve in curves.items():
        above.plot(list(curve), list(curve.values()), label=name, linewidth=1)
    above.set_ylabel("training loss")
    above.legend()
    first, *others = curves
    for name in others:
        shared = [step for step in curves[first] if step in curves[name]]
        apart = [abs(curves[first][step] - curves[name][step]) for step in shared]
        below.semilogy(shared, apart, label=f"|{first} - {name}|", linewidth=1)
    below.set_xlabel("step")
    below.set_ylabel("difference")
    below.legend()
    figure.savefig(target, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
