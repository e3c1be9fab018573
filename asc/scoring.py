"""The classes of clips and the scores of a data set, by one process or several."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastsep
from asc.checkpoint import fingerprint
from asc.compute import Engine, Precision, send
from asc.errors import note
from asc.journal import Journal, digest
from asc.metrics import Scores, score
from asc.model import Cnn6Sep
from asc.prediction import (
    LogMelItems,
    Network,
    Until,
    batches,
    check,
    checked,
    computing,
    item_names,
    masked,
    stacked,
    tta_name,
)
from asc.processes import Place, run, shares
from asc.progress import Advance, counted

if TYPE_CHECKING:  # readers of audio, which nothing here needs
    from asc.data import ClipList

_FORGOTTEN = 30 * 86_400  # seconds
_KEEP_EVERY = 5.0  # seconds of work that a kill may cost; a GPU is waited for as often


@dataclass(frozen=True)
class Prediction:
    """A clip's class: probabilities by class, `label` the largest; logits of the unmasked clip.

    masks: how many masked copies the probabilities are the mean of; 0: of none, of the clip.
    """

    label: str
    probabilities: dict[str, float]
    logits: list[float]
    masks: int = 0


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network says of clips, all on the CPU.

    logits: of the unmasked clips, (N, classes) float64.
    probabilities: under the masks, or without any, (N, classes) float64.
    masks: how many each clip had.
    """

    logits: Tensor
    probabilities: Tensor
    masks: list[int]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network, and the probabilities they are of, (N, classes) float64, by `tta`:
    without masks, and with them if there were any.

    logits: of the unmasked clips, (N, classes) float64.
    masks: how many each clip had.
    """

    scores: dict[int | Until, Scores]
    probabilities: dict[int | Until, Tensor] = field(compare=False)
    logits: Tensor = field(compare=False)
    masks: list[int]


class How(TypedDict, total=False):
    """What `outputs` takes by name, for those that pass it on."""

    tta: int | Until
    seed: int
    engine: Engine
    device: torch.device | str | None
    precision: Precision
    devices: int
    journal: Journal | None


def predict(model: Network, items: LogMelItems, **how: Unpack[How]) -> list[Prediction]:
    """The class of every item, under its name; arguments and errors as of `outputs`."""
    found = outputs(model, items, **how)
    return [
        Prediction(
            label=model.classes[row.index(max(row))],
            probabilities=dict(zip(model.classes, row, strict=True)),
            logits=logits,
            masks=masks,
        )
        for row, logits, masks in zip(
            found.probabilities.tolist(), found.logits.tolist(), found.masks, strict=True
        )
    ]


def score_clips(
    model: Network, items: LogMelItems, clips: "ClipList", **how: Unpack[How]
) -> Evaluation:
    """Scores of a network on a data set, without masks, and with tta if not 0.

    Args:
        items: log-mels of the clips.
        clips: with all their labels, which count the model's classes.
        model, how: as of `outputs`.

    Raises:
        ValueError, UserError, KeyboardInterrupt: as `outputs` and `asc.metrics.score`.
    """
    labels = [label for label in clips.labels if label is not None]
    found = outputs(model, items, **how)
    probabilities: dict[int | Until, Tensor] = {0: found.logits.softmax(dim=1)}
    probabilities[how.get("tta", 0)] = found.probabilities
    scores = {
        masks: score(p, labels, model.classes, clips.devices) for masks, p in probabilities.items()
    }
    return Evaluation(scores, probabilities, found.logits, found.masks)


def outputs(
    model: Network,
    items: LogMelItems,
    *,
    tta: int | Until = 0,
    seed: int = 0,
    engine: Engine = "shared",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    devices: int = 1,
    journal: Journal | None = None,
) -> Outputs:
    """Logits of every item without masks and its probabilities with them, in one go.

    Args:
        model, items, tta, seed, engine, device, precision: as of `asc.prediction.probabilities`.
        devices: processes that share the clips, with a GPU each on "cuda", started here (see
            `asc.processes.run`). They find what one process finds.
        journal: of `evaluation_journal`: keeps what is done; what it has is not computed again.

    Raises:
        ValueError, UserError: as `probabilities`; a process was killed.
        KeyboardInterrupt: on Ctrl-C; all processes are gone then.
    """
    check(model, tta, seed)
    # Batches are those of one process: last bits may depend on them on GPUs and in plain PyTorch.
    every = list(batches(model, items, engine=engine))
    done = journal.read()[1] if journal else np.zeros(len(items), dtype=bool)
    whole = sum(len(batch) for batch in every if done[batch].all())
    if whole:
        note(f"{whole} of {len(items)} clips were done before an interruption")
    count = max(1, min(devices, len(every)))
    parts = [every[part.start : part.stop] for part in shares(len(every), count)]
    work = [(model, items, part, tta, seed, engine, device, precision, journal) for part in parts]
    description = f"evaluation, {tta_name(tta)}" if tta else "evaluation"
    with counted(description, len(items), completed=whole, unit="clips") as advance:
        found = (
            [_part(Place(), advance, *work[0])] if count == 1 else run(_part, work, advance=advance)
        )
    classes = len(model.classes)
    rows = torch.from_numpy(np.concatenate(found))
    logits = checked(rows[:, :classes], items)
    p = checked(rows[:, classes:-1], items)
    return Outputs(logits, p, rows[:, -1].long().tolist())


def evaluation_journal(
    folder: Path, model: Cnn6Sep, clips: "ClipList", *settings: object
) -> Journal | None:
    """A journal of the outputs of a network on audio files; None, which is said, if none can be.

    Args:
        folder: where its file is to be; made if missing.
        model: the network, on the CPU.
        clips: the files. Of one that has changed since, nothing is taken over.
        settings: what else the outputs depend on.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _note_unkept(folder, error)
        return None
    for old in folder.glob("evaluation-*.part"):  # which nobody has gone on with
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > _FORGOTTEN:
                old.unlink()
    of_all = digest(
        fastsep.__version__,
        fastsep.backends(),
        torch.__version__,
        fingerprint(model),
        model.specaugment,
        *settings,
    )
    depends = [digest(of_all, *clip.state()) for clip in clips]
    which = digest(of_all, *(clip.state()[0] for clip in clips))
    path = folder / f"evaluation-{which.hex()[:16]}.part"
    return Journal(path, depends, _width(model))


def _width(model: Network) -> int:
    """Of a row: logits, probabilities, and how many masks there were."""
    return 2 * len(model.classes) + 1


@torch.inference_mode()
def _part(
    place: Place,
    advance: Advance,
    model: Network,
    items: LogMelItems,
    parts: list[range],
    tta: int | Until,
    seed: int,
    engine: Engine,
    device: torch.device | str | None,
    precision: Precision,
    journal: Journal | None,
) -> NDArray[np.float64]:
    """One process's part of `outputs`, some batches in a row: a row a clip, see `_width`."""
    if device == "cuda" and place.count > 1:
        device = f"cuda:{place.local_rank}"
    if not parts:
        return np.empty((0, _width(model)))
    first, classes = parts[0].start, len(model.classes)
    names = item_names(items) or range(len(items))
    before, done = journal.read() if journal else (np.empty(0), np.zeros(len(items), dtype=bool))
    with computing(model, device, precision) as (network, where):
        rows = torch.zeros(parts[-1].stop - first, _width(model), dtype=torch.float64, device=where)
        kept = at = 0
        last = time.monotonic()

        def keep() -> None:
            nonlocal journal, kept, last
            if journal and at > kept:
                try:
                    journal.write(first + kept, rows[kept:at].cpu().numpy())
                except OSError as error:
                    _note_unkept(journal.path, error)
                    journal = None
            kept, last = at, time.monotonic()

        try:
            for batch in parts:
                start, stop = batch.start - first, batch.stop - first
                if done[batch].all():
                    rows[start:stop] = torch.from_numpy(before[batch])
                else:
                    logmels = stacked(items, batch, where)
                    rows[start:stop, :classes] = network(logmels)
                    p = rows[start:stop, :classes].softmax(dim=1)
                    if tta:
                        of_batch = [names[index] for index in batch]
                        p, used = masked(network, logmels, of_batch, tta, seed, engine)
                        rows[start:stop, -1] = send(used.double(), where)
                    rows[start:stop, classes:-1] = p
                    advance(len(batch))
                at = stop
                if time.monotonic() - last > _KEEP_EVERY:
                    keep()
        finally:
            keep()
    return rows.cpu().numpy()


def _note_unkept(path: Path, error: OSError) -> None:
    note(
        f"{path}: cannot be written ({error.strerror or error}), so that an evaluation which is "
        "interrupted will begin anew"
    )
