"""`asc submit`."""

from pathlib import Path
from typing import Annotated

import typer

from asc.cli.options import (
    Device,
    Devices,
    Eps,
    GainOption,
    Inference,
    Masks,
    Seed,
    Tolerance,
    TtaEngine,
    Weights,
    tta_of,
)


def command(
    weights: Weights,
    data: Annotated[
        Path,
        typer.Argument(help="The evaluation set, in TAU layout: the clips of its fold1_test.csv."),
    ],
    results: Annotated[
        Path,
        typer.Option(
            help="Scores of these weights on the development set: what asc evaluate --json wrote, "
            "or a folder with scores.json."
        ),
    ],
    authors: Annotated[
        Path,
        typer.Option(help="YAML file of who submits what, as above."),
    ],
    label: Annotated[str, typer.Option(help="Lastname_INSTITUTE_task1a_N, N from 1 to 4.")],
    out: Annotated[Path, typer.Option(help="Folder for the two files, made if need be.")],
    tta: Masks = "0",
    tta_tolerance: Tolerance = 0.01,
    tta_engine: TtaEngine = "shared",
    seed: Seed = 0,
    gain: GainOption = "0",
    eps: Eps = None,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Inference = "float32",
) -> None:
    """Makes a submission to DCASE 2021 Task 1A.

    Leaves LABEL.output.csv, the class and ten probabilities of each clip, and LABEL.meta.yaml, the
    description of the system, in --out. Both are checked against the task's rules first; nothing
    is written if one is broken. The network is computed as it is stored, in float16.

    \b
    Example, and what it takes of authors.yaml:
      asc evaluate run/folded.pt DEVELOPMENT --tta 30 --json scores.json
      asc submit run/folded.pt EVALUATION --tta 30 --results scores.json
          --authors authors.yaml --label Doe_XYZ_task1a_1 --out submission

    \b
      name: Separable convolutions and test-time augmentation
      abbreviation: sep_tta        # at most 10 characters
      authors:
      - lastname: Doe
        firstname: Jane
        email: jane@example.org
        corresponding: true        # one of them
        affiliation: {abbreviation: XYZ, institute: Institute of X, location: Paris}
      # and if need be description, external_datasets, source_code
    """
    from asc.checkpoint import fingerprint, load_model
    from asc.compute import pick_device
    from asc.data import open_dataset, open_logmels
    from asc.files import atomic, check_folder, make_folder
    from asc.level import LevelledItems, check_gain
    from asc.processes import check_devices
    from asc.report import submission
    from asc.report.found import remark_on_levels
    from asc.scoring import predict

    target = pick_device(device, precision)
    check_devices(devices, target)
    submission.check_label(label)
    masks = tta_of(tta, tta_tolerance)
    entry = submission.read_entry(authors)
    settings = {"eps": eps, "gain": gain, "precision": precision}
    model = load_model(weights, eps=eps)
    scores = submission.read_results(results, masks, fingerprint(model), settings)
    submission.note_other_name(label, entry)
    model = submission.as_submitted(model)
    check_gain(gain, model.level)
    clips = open_dataset(data, "test")
    names = [clip.path.name for clip in clips]
    augmentation = submission.trained_with(weights, model.run)
    meta = submission.meta(label, entry, model, masks, augmentation, scores)
    check_folder(out)
    with open_logmels(clips, device=target) as logmels:
        heard = LevelledItems(logmels, gain, model.level)
        found = predict(
            model,
            heard,
            tta=masks,
            seed=seed,
            engine=tta_engine,
            device=target,
            precision=precision,
            devices=devices,
        )
    remark_on_levels([clip.path for clip in clips], heard.levels.tolist(), model.level)
    files = {
        f"{label}.output.csv": submission.output_table(names, found),
        f"{label}.meta.yaml": submission.meta_yaml(meta),
    }
    make_folder(out)
    for name, text in files.items():
        with atomic(out / name) as file:
            file.write(text.encode())
    for name in files:
        print(out / name)
    complexity, overall = meta["system"]["complexity"], scores["overall"]
    print(
        f"{len(names)} clips; {complexity['total_parameters']} parameters, "
        f"{complexity['model_size']:.2f} KB of 128; on the development set log loss "
        f"{overall['logloss']:.3f}, accuracy {overall['accuracy']:.1f} %"
    )
