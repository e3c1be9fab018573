"""For all tests: more than one file is shared by two processes; Triton's interpreter is sped up."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fastsep.kernels import interpreted

# Files that take minutes come first, so that both processes end together.
LONGEST = (
    "test_triton",
    "test_sanitizers",
    "test_dispatch",
    "test_kill",
    "test_ops",
    "test_training",
    "test_kernels",
    "test_fusion",
    "test_processes",
    "test_distributed",
    "test_triton_resources",
    "test_functional",
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two processes, a file in one of them, for more than one file, unless -n or --pdb is given."""
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # one of the two, or started by a test in one
    several = len(config.args) > 1 or any(Path(arg).is_dir() for arg in config.args)
    asked = getattr(option, "numprocesses", 0) is not None  # 0: pytest-xdist is not there
    if several and not (asked or option.usepdb):
        option.numprocesses, option.dist, option.loadscopereorder = 2, "loadfile", False
        # Threads that wait sleep: between two processes there are more of them than cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def patch_the_language_once() -> None:
    """Looks through the whole language once a launch, not at every call from one of our functions
    to another, which took a third of the interpreter's time."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch: Callable[[Any], Any] = interpreter._patch_lang

    @cache
    def languages(function: Any) -> list[Any]:
        return [m for m in function.__globals__.values() if m is tl or m is tl.core]

    def patch_once(function: Any) -> Any:
        unpatched = any(tl.core.is_builtin(language.load) for language in languages(function))
        return patch(function) if unpatched else interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


if interpreted():
    patch_the_language_once()
