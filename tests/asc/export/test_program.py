import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asc.checkpoint import load_model, save_folded
from asc.data import load_clip
from asc.export import plain, program
from asc.export.package import write_package
from asc.features import LogMel
from asc.model import Cnn6Sep


@pytest.fixture(scope="module")
def path(model: Cnn6Sep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "network.pt2"
    path.write_bytes(program.content(model, {"classes": list(model.classes)}))
    return path


def test_log_mels_of_any_number_and_length(path: Path, model: Cnn6Sep) -> None:
    run = program.opened(path)
    for clips, frames in ((1, 431), (3, 47), (1, 32), (2, 64)):
        x = 15 * torch.randn(clips, 1, frames, 256) - 30
        expected = model(x)
        # the same float32 sums, in another order
        assert (run(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_operators_and_description(path: Path) -> None:
    extra = {program.METADATA: ""}
    graph = torch.export.load(path, extra_files=extra).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert called and not any("fastsep" in target for target in called)
    assert json.loads(extra[program.METADATA]) == {"classes": ["forest", "<b>", "Straße"]}


FRESH = """
import sys
sys.modules.update(dict.fromkeys(["asc", "fastsep", "torchaudio"]))  # cannot be imported
PLAIN
program = torch.export.load("network.pt2").module()
from Someone_Lab_task1 import Someone_Lab_task1_1
rows, classes = Someone_Lab_task1_1.predict(["tone.wav"])
assert classes == file["classes"]
x = torch.load("logmel.pt")
torch.save({"plain": logits(x), "program": program(x), "package": rows[0][None]}, "logits.pt")
"""


def test_files_run_where_there_is_no_asc(
    path: Path, model: Cnn6Sep, tmp_path: Path, wav: Callable[..., Path]
) -> None:
    """The program, the ten lines and the package, in a fresh process without this project."""
    x = LogMel()(load_clip(wav(tmp_path / "tone.wav", seconds=3)))
    torch.save(x, tmp_path / "logmel.pt")
    shutil.copy(path, tmp_path)
    save_folded(model, tmp_path / "folded.pt")
    write_package(model, tmp_path / "Someone_Lab_task1")
    lines = plain.lines(tmp_path / "folded.pt")
    (tmp_path / "fresh.py").write_text(FRESH.replace("PLAIN", lines))
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "fresh.py"],
        cwd=tmp_path, capture_output=True, text=True, env=alone, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rounded = load_model(tmp_path / "folded.pt")(x)
    for name, logits in torch.load(tmp_path / "logits.pt").items():
        expected = model(x) if name == "program" else rounded
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max(), name
