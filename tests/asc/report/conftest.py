"""An evaluation of five short clips, whose names are what nobody should have to expect."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from noise import CLIPS, network

from asc.data import Clip, ClipList
from asc.data.clips import device_from_name
from asc.model import Cnn6Sep
from asc.report.evaluation import describe
from asc.scoring import Evaluation, score_clips

CLASSES = ("<img src=x onerror=alert(1)>", "tram $\\frac$", "caf\udce9 & <b>", "park")
NAMES = (
    "audio/<script>alert(1)</script>.wav",
    "audio/tram-oslo-1-22-a.wav",
    "audio/tram-oslo-1-23-s1.wav",
    "audio/park-lyon-2-24-s5.wav",
    "audio/caf\udce9 {{ 7 * 7 }}.wav",
)
SETTINGS = {
    "weights": "runs/<i>x</i>/folded.pt", "data": "data", "split": "all", "seed": 1, "eps": None,
    "precision": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Evaluated:
    root: Path
    clips: ClipList
    model: Cnn6Sep
    found: Evaluation
    content: dict[str, Any]


@pytest.fixture(scope="session")
def evaluate(
    tmp_path_factory: pytest.TempPathFactory, wav: Callable[..., Path]
) -> Callable[..., Evaluated]:
    """evaluate(names, labels, tta=3, temperature=1.0): of a clip for each."""
    root = tmp_path_factory.mktemp("data")

    def evaluate(
        names: tuple[str, ...],
        labels: tuple[int, ...],
        tta: int = 3,
        temperature: float = 1.0,
    ) -> Evaluated:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            wav(root / "x.wav").rename(root / name)  # soundfile writes no such names
        paths = [root / name for name in names]
        clips = ClipList(
            CLASSES,
            tuple(
                Clip(path, label, device_from_name(path))
                for path, label in zip(paths, labels, strict=True)
            ),
        )
        model = network().calibrated(temperature)
        model.classes = CLASSES
        model.run = {"preset": {"name": "fl_tta", "epochs": 3}, "seed": 4, "keep": "last"}
        found = score_clips(model, CLIPS[: len(clips)], clips, tta=tta, seed=1)
        return Evaluated(root, clips, model, found, describe(SETTINGS, found, clips, model))

    return evaluate


@pytest.fixture(scope="session")
def evaluated(evaluate: Callable[..., Evaluated]) -> Evaluated:
    """Calibrated, with masks; most clips are taken for other classes."""
    return evaluate(NAMES, (1, 2, 2, 3, 0), temperature=2.0)
