"""`import fastsep`: light, silent, and in one direction."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import fastsep

PACKAGE = Path(fastsep.__file__).parent


def test_importing_brings_nothing_that_torch_had_not(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """No compiler, no Triton, no numerics package: `import fastsep` costs next to nothing."""
    code = """
import json, sys, torch
before = set(sys.modules)
import fastsep
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    packages = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert packages - set(sys.stdlib_module_names) == {"fastsep"}


def test_importing_says_nothing(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    run = run_python("import fastsep", PYTHONWARNINGS="error")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_user_without_a_name_can_export(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """`docker run --user 1234`: PyTorch's compiler asks for the name when it is imported."""
    code = """
import os, pwd
def getpwuid(uid): raise KeyError(uid)
pwd.getpwuid = getpwuid
for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
    os.environ.pop(name, None)
import fastsep, torch
net, x = fastsep.SepConvBlock(1, 4).eval(), torch.ones(1, 1, 8, 8)
assert torch.equal(torch.export.export(net, (x,)).module()(x), net(x))
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _imports(path: Path, modules: set[str]) -> Iterator[str]:
    """What a file imports of the package: for types alone, and by importlib, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from ({ast.literal_eval(node.args[0])} & modules)


def test_imports_run_one_way() -> None:
    """No module needs, not even later, one that needs it."""
    modules = {_module(path): path for path in PACKAGE.rglob("*.py")}
    graph = {name: set(_imports(path, set(modules))) for name, path in modules.items()}
    assert graph["fastsep.functional"] >= {"fastsep.checks", "fastsep.dispatch", "fastsep.ops"}
    assert "fastsep.triton.operators" in graph["fastsep.kernels"]
    TopologicalSorter(graph).prepare()  # raises CycleError
    assert graph["fastsep.layouts"] == set()


def test_private_parts_of_torch_are_in_dispatch() -> None:
    private = re.compile(
        r"(torch(\.\w+)*|\bforward_ad)\._\w|^from torch[\w.]* import .*\b_\w", re.M
    )
    leaning = {path.name for path in PACKAGE.rglob("*.py") if private.search(path.read_text())}
    assert leaning == {"dispatch.py"}
