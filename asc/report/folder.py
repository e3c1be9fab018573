"""The folder of an evaluation: predictions.csv, scores.json and report.html, each whole."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from asc.data.clips import ClipList
from asc.errors import UserError
from asc.files import atomic, check_file, check_folder, make_folder, write_results
from asc.model import Cnn6Sep
from asc.report import predictions
from asc.scoring import Evaluation, Prediction

SCORES, REPORT = "scores.json", "report.html"


def import_meanwhile() -> Thread:
    """Begins to import what draws a report, which takes a second, while the network computes."""

    def work() -> None:
        with suppress(ImportError):  # is raised again where it is needed, scores are written then
            for name in ("asc.report.page", "torchmetrics.functional.classification"):
                import_module(name)

    thread = Thread(target=work)
    thread.start()
    return thread


def check_out(out: Path, *, scored: bool) -> None:
    """Checks, before a long computation, that its results can be left in a folder.

    Args:
        out: the folder, which need not be there.
        scored: whether there will be scores; without, those of an evaluation before would stay.

    Raises:
        UserError: no folder, or it holds scores and none would replace them.
        OSError: it cannot be written.
    """
    check_folder(out)
    if not out.is_dir():
        return
    for name in (predictions.NAME, SCORES, REPORT):
        check_file(out / name)
        if not scored and name != predictions.NAME and (out / name).exists():
            raise UserError(
                f"{out}: holds {name} of another evaluation, which would then stand beside "
                "predictions of clips without scores; choose another folder"
            )


def write_evaluation(
    out: Path,
    root: Path,
    clips: ClipList,
    model: Cnn6Sep,
    found: Evaluation,
    content: Mapping[str, Any],
    *,
    audio: bool = True,
) -> None:
    """Leaves what was found in a folder.

    The predictions are those under masks, if there were any.

    Args:
        out: the folder.
        root: the data set's.
        clips, found, model: what was found about which clips by which network.
        content: of `asc.report.evaluation.describe`.
        audio: whether the report has excerpts to listen to.

    Raises:
        UserError, OSError: they cannot be written; the scores are kept elsewhere then.
    """
    make_folder(out)
    (out / REPORT).unlink(missing_ok=True)  # of an evaluation before, whatever happens to this one
    write_results(out / SCORES, content)
    p = list(found.probabilities.values())[-1]
    predictions.write_predictions(out / predictions.NAME, clips, root, model.classes, p)
    from asc.report.page import report_page

    page = report_page(content, found, clips, root, model, audio=audio)
    with atomic(out / REPORT) as file:
        file.write(page.encode())


def write_unscored(
    out: Path, root: Path, clips: ClipList, classes: Sequence[str], found: Sequence[Prediction]
) -> None:
    """Leaves predictions of clips without labels in a folder."""
    make_folder(out)
    rows = [list(prediction.probabilities.values()) for prediction in found]
    p = torch.tensor(rows, dtype=torch.float64)
    predictions.write_predictions(out / predictions.NAME, clips, root, classes, p)
