"""The `asc` command. Bad input: one line on stderr, exit code 2."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from asc.errors import UserError
from asc.presets import PRESETS, get_preset

if TYPE_CHECKING:  # torch and Lightning take seconds to import: only the commands that need them do
    from asc.training import Settings

app = typer.Typer(
    help="Acoustic scene classification with separable convolutions (DCASE 2021 Task 1A).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MAX_SEED = 2**32 - 1  # Lightning's

Weights = Annotated[
    Path, typer.Argument(help="A training checkpoint, folded weights, or an SP4ASC checkpoint.")
]
Data = Annotated[
    Path, typer.Argument(help="A data set: TAU layout, or one folder of audio files per class.")
]
Masks = Annotated[
    int, typer.Option("--tta", min=0, help="Masks per clip to average over; 0: no augmentation.")
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of everything random.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where to compute; auto: on the GPU if there is one."),
]
Precision = Literal["float32", "tf32", "bf16"]
Inference = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Of the network's products. tf32: on GPUs; bf16: where there are kernels for it.",
    ),
]
Cache = Annotated[
    Path | None, typer.Option(help="Folder that keeps the log-mels for the next time.")
]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (sys.argv's without one) and returns its exit code."""
    try:
        _check_environment()
        return app(args=argv, prog_name="asc", standalone_mode=False) or 0
    except typer.TyperException as error:  # the command line itself
        return _failed(error.format_message())
    except UserError as error:
        return _failed(str(error))
    except OSError as error:
        named = error.filename is not None and error.strerror
        return _failed(f"{error.filename}: {error.strerror}" if named else str(error))


def _check_environment() -> None:
    """UserError for a backend or an instruction set that is asked for but cannot run."""
    if os.environ.get("FASTSEP_BACKEND") or os.environ.get("FASTSEP_CPU_ISA"):
        try:
            import fastsep  # noqa: F401  (reads them)
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error).splitlines()[0]) from error


def _failed(message: str) -> int:
    if message:  # empty where the help was shown instead
        print("asc:", " ".join(message.split()), file=sys.stderr)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        import torch

        import fastsep

        print(f"asc {fastsep.__version__} (PyTorch {torch.__version__})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results, new or empty.")] = Path(
        "asc-demo"
    ),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Shows the whole system on synthetic data, in a few minutes.

    Makes data, trains, evaluates without and with test-time augmentation, and times the fused
    layers against PyTorch's own.
    """
    from asc.demo import run
    from asc.device import pick_device

    run(out, seed, pick_device(device))


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make, new or empty.")],
    clips_per_scene: Annotated[int, typer.Option(help="At least 2.")] = 12,
    seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 10.0,
    seed: Seed = 0,
) -> None:
    """Makes a synthetic data set of ten scenes in TAU layout, to try things on."""
    from asc.data import write_synthetic

    write_synthetic(out, clips_per_scene=clips_per_scene, seconds=seconds, seed=seed)


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the run, new or empty.")],
    preset: Annotated[
        str | None, typer.Option(help=f"{', '.join(PRESETS)}.", show_default="ce_tta")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, show_default="200")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, show_default="32")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, show_default="0", help="Of everything random."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")
    ] = False,
    precision: Annotated[
        Precision | None,
        typer.Option(
            show_default="float32",
            help="tf32: float32 with TF32 products, on GPUs; bf16: mixed, parameters in float32.",
        ),
    ] = None,
    device: Device = "auto",
    cache: Cache = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data.")] = 0,
) -> None:
    """Trains a network.

    Leaves best.ckpt, last.ckpt, folded.pt (float16, for inference), config.json and TensorBoard
    logs in --out.
    """
    from asc import training
    from asc.data import LogMels, open_dataset
    from asc.device import pick_device

    if resume:
        settings = training.read_settings(out)
        if _overridden(settings, preset, epochs, batch_size, seed, precision) != settings:
            raise UserError(
                f"{out}: a run resumes with its own settings (see its config.json), "
                "so leave out --preset, --epochs, --batch-size, --seed and --precision"
            )
    else:
        training.check_new_run(out)
        start = training.Settings(get_preset(preset or "ce_tta"))
        settings = _overridden(start, preset, epochs, batch_size, seed, precision)
    target = pick_device(device, settings.precision)
    clips, validation = (open_dataset(data, split) for split in ("train", "evaluate"))
    training.check_batch(len(clips), settings)
    datasets = LogMels(clips, cache, target), LogMels(validation, cache, target)
    try:
        training.fit(
            *datasets,
            clips.classes,
            settings,
            out,
            device=target,
            workers=workers,
            resume=resume,
            notes={"data": str(data.absolute()), "cache": cache and str(cache.absolute())},
        )
    except KeyboardInterrupt:
        print(f"asc: interrupted; --resume goes on with the run in {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"{out / 'folded.pt'}: weights for inference")


def _overridden(
    settings: "Settings",
    preset: str | None,
    epochs: int | None,
    batch_size: int | None,
    seed: int | None,
    precision: Precision | None,
) -> "Settings":
    """The settings with what the command line says instead; None says nothing."""
    recipe = settings.preset
    if preset is not None and preset != recipe.name:
        recipe = get_preset(preset)
    recipe = replace(
        recipe,
        epochs=recipe.epochs if epochs is None else epochs,
        batch_size=recipe.batch_size if batch_size is None else batch_size,
    )
    return replace(
        settings,
        preset=recipe,
        seed=settings.seed if seed is None else seed,
        precision=settings.precision if precision is None else precision,
    )


@app.command()
def evaluate(
    weights: Weights,
    data: Data,
    tta: Masks = 0,
    seed: Seed = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the scores to a file too.")
    ] = None,
    split: Annotated[
        Literal["evaluate", "train"], typer.Option(help="Of the data set.")
    ] = "evaluate",
    eps: Annotated[
        float | None,
        typer.Option(
            help="In 1 / sqrt(var + eps) when batch norm is folded, instead of its own 1e-5; "
            "0 reproduces the numbers published for the report's weights.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    precision: Inference = "float32",
    cache: Cache = None,
) -> None:
    """Scores a network on a data set: overall, by class and by device."""
    from asc import evaluation, report
    from asc.checkpoint import load_model
    from asc.data import LogMels, open_dataset
    from asc.device import pick_device
    from asc.metrics import score

    target = pick_device(device, precision)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"{json_file}: its folder does not exist")
    model = load_model(weights, eps=eps)
    clips = open_dataset(data, split, model.classes)
    logmels = LogMels(clips, cache, target)
    labels = [clip.label for clip in clips if clip.label is not None]
    systems = {}
    for masks in (0, tta) if tta else (0,):
        probabilities = evaluation.evaluate(
            model, logmels, tta=masks, seed=seed, device=target, precision=precision
        )
        systems[masks] = score(probabilities, labels, model.classes, clips.devices)
    if json_file is not None:
        content = {
            "weights": str(weights),
            "data": str(data),
            "split": split,
            "seed": seed,
            "eps": eps,
            "precision": precision,
            "results": [{"tta": masks, **s.to_dict()} for masks, s in systems.items()],
        }
        report.write_json(json_file, content)
    named = {f"{masks} TTA" if masks else "no TTA": s for masks, s in systems.items()}
    report.print_tables(Console(), report.score_tables(named))


@app.command()
def predict(
    weights: Weights,
    audio: Annotated[list[Path], typer.Argument(help="Audio files.")],
    tta: Masks = 0,
    seed: Seed = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line instead of a table.")
    ] = False,
    device: Device = "auto",
    precision: Inference = "float32",
) -> None:
    """Names the scene of audio files.

    Of each file the first 10 s count; shorter ones are repeated. Nothing is printed unless all
    files can be read. JSON: file, label, probabilities by class, and logits in the order of the
    classes. With --tta probabilities are averages over the masks and label is their largest;
    logits are always those of the unmasked clip.
    """
    from asc import evaluation
    from asc.checkpoint import load_model
    from asc.data import load_clip
    from asc.device import pick_device, send
    from asc.features import LogMel
    from asc.progress import tracked

    target = pick_device(device, precision)
    model = load_model(weights)
    extract = LogMel().to(target)
    logmels = [
        (extract(send(load_clip(path), target))[0], -1) for path in tracked(audio, "log-mels")
    ]
    logits = evaluation.clip_logits(model, logmels, device=target, precision=precision)
    probabilities = logits.softmax(dim=1)
    if tta:
        probabilities = evaluation.evaluate(
            model, logmels, tta=tta, seed=seed, device=target, precision=precision
        )

    table = Table(Column("file", overflow="fold"), "label", "probability")
    for path, row, p in zip(audio, logits.tolist(), probabilities.tolist(), strict=True):
        label = model.classes[p.index(max(p))]
        name = os.fsencode(path).decode(errors="replace")
        if as_json:
            result: dict[str, Any] = {"file": name, "label": label}
            result["probabilities"] = dict(zip(model.classes, p, strict=True))
            print(json.dumps(result | {"logits": row}))
        else:
            table.add_row(Text(name), Text(label), f"{100 * max(p):.1f} %")
    if not as_json:
        Console().print(table)


@app.command()
def info(weights: Weights) -> None:
    """Prints a network's layers, parameters and size, counted from the network itself."""
    from asc.checkpoint import load_model
    from asc.model import parameter_table
    from asc.report import parameter_report

    model = load_model(weights)
    console = Console()
    console.print(parameter_report(parameter_table(model)))
    halved = [parameter.half() for parameter in model.parameters()]
    total = sum(parameter.numel() for parameter in halved)
    nonzero = sum(int(parameter.count_nonzero()) for parameter in halved)
    size = sum(parameter.nbytes for parameter in halved)
    console.print(f"parameters at test time: {total}, of them not zero as float16: {nonzero}")
    console.print(f"size as float16: {size} B = {size / 1000:.2f} KB of 1000 B "
                  f"= {size / 1024:.2f} KB of 1024 B")  # fmt: skip
    console.print("classes:", ", ".join(model.classes), markup=False)


if __name__ == "__main__":
    sys.exit(main())
