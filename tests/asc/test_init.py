import subprocess
import sys

import pytest

import asc


@pytest.mark.parametrize("name", asc.__all__)
def test_public_names_are_there(name: str) -> None:
    value = getattr(asc, name)
    assert value.__name__ == name and value.__module__ == asc._HOMES[name]


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'evaluate'"):
        asc.evaluate  # noqa: B018


@pytest.mark.parametrize("module", ["asc", "asc.cli.app"])
def test_importing_it_is_quick(module: str) -> None:
    slow = ("torch", "torchaudio", "lightning", "numpy", "soundfile")
    program = f"import sys, {module}; sys.exit(str([m for m in {slow} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stderr.strip() == "[]"


def test_importing_says_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", "import fastsep, asc"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_user_without_a_name() -> None:
    """`docker run --user 1234`: torch's compiler, which training imports, asks for the name."""
    program = """
import os, pwd
def getpwuid(uid): raise KeyError(uid)
pwd.getpwuid = getpwuid
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
import asc
import torch._dynamo
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_process_forked_after_importing_it_can_compute() -> None:
    """As a fork server's: if importing had started PyTorch's threads, it would wait forever."""
    modules = ["asc.cli.app", "asc.training.run", "asc.prediction", "asc.timeline"]
    program = f"""
import os, signal, {", ".join(modules)}
import torch
torch.set_num_threads(2)
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.ones(1000, 1000).exp()
    asc.LogMel()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
