"""The headers of csrc/cpu: each includes what it uses, and nothing that is not in standard.h."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CPU = Path(__file__).parents[2] / "csrc/cpu"
HEADERS = sorted([*CPU.glob("parts/*.h"), *CPU.glob("sweeps/*.h")])


def named(header: Path) -> str:
    return str(header.relative_to(CPU))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("header", HEADERS, ids=named)
def test_compiles_alone(header: Path, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(
        f'#define FASTSEP_ISA baseline\n#define FASTSEP_VECTOR_BYTES 16\n#include "{header}"\n'
    )
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", "-fsyntax-only"]
    result = subprocess.run(["g++", *flags, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("header", HEADERS, ids=named)
def test_others_headers_come_before_the_target(header: Path) -> None:
    """Library code compiled for one instruction set would run on machines that lack it."""

    def others(file: Path) -> set[str]:
        return set(re.findall(r"#include (<.*>)", file.read_text()))

    assert others(header) <= others(CPU / "standard.h")
