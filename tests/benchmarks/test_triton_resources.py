"""What the GPU kernels need, against the table that is committed."""

import csv

import pytest

from fastsep.kernels import interpreted

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    from benchmarks.triton_resources import table

    return table()


def test_the_table_is_up_to_date(rows: list[dict[str, str]]) -> None:
    from benchmarks.triton_resources import TABLE

    with TABLE.open(newline="") as file:
        committed = list(csv.DictReader(file))
    changed = [row for row in rows if row not in committed]
    assert rows == committed, f"run `python -m benchmarks.triton_resources`; it changes {changed}"


def test_the_tiles_in_use_spill_next_to_nothing(rows: list[dict[str, str]]) -> None:
    assert [row for row in rows if int(row["spills"]) > 32] == []  # bytes
