import subprocess
import sys

from asc import task

# Finds nothing but torch, numpy and what they themselves import.
ONLY_TORCH_AND_NUMPY = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not there")

sys.meta_path.insert(0, Blocked())
import {modules}
"""
BLOCKED = ("torchaudio", "soundfile", "rich", "lightning", "typer", "tensorboard", "matplotlib",
           "torchmetrics", "jinja2")  # fmt: skip


def import_without(blocked: tuple[str, ...], modules: str) -> subprocess.CompletedProcess[str]:
    program = ONLY_TORCH_AND_NUMPY.format(blocked=blocked, modules=modules)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_networks_and_scores_need_torch_and_numpy_alone() -> None:
    run = import_without(
        BLOCKED, "asc.metrics, asc.bootstrap, asc.model, asc.complexity, asc.checkpoint"
    )
    assert run.returncode == 0, run.stderr


def test_the_task_needs_nothing() -> None:
    run = import_without((*BLOCKED, "torch", "numpy"), "asc.task")
    assert run.returncode == 0, run.stderr


def test_what_is_blocked_is_missed() -> None:
    run = import_without(BLOCKED, "asc.features")
    assert run.returncode != 0 and "torchaudio is not there" in run.stderr


def test_sizes() -> None:
    """SPEC: 10 s at 44.1 kHz are 431 frames; scenes in alphabetical order, three real devices."""
    assert task.CLIP_SAMPLES == 10 * task.SAMPLE_RATE
    assert task.FRAMES == 431
    assert len(task.SCENES) == 10 and list(task.SCENES) == sorted(task.SCENES)
    assert task.DEVICES[:3] == ("a", "b", "c") and len(task.DEVICES) == 9
    assert task.TRAINING_DEVICES == ("a", "b", "c", "s1", "s2", "s3")
