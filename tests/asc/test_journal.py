from pathlib import Path

import numpy as np
import pytest

from asc.journal import Journal, digest

DEPENDS = [digest("weights", i) for i in range(4)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "rows.part", DEPENDS, 3)


def test_rows_come_back(journal: Journal) -> None:
    rows, there = journal.read()
    assert rows.shape == (4, 3) and not there.any() and not journal.path.exists()
    written = np.array([[1.5, np.nan, np.inf], [0.0, -0.0, 1e-300]])
    journal.write(1, written)
    rows, there = journal.read()
    assert there.tolist() == [False, True, True, False]
    assert rows[1:3].tobytes() == written.tobytes()
    journal.write(3, np.ones((1, 3)))
    journal.write(0, np.ones((1, 3)))
    assert journal.read()[1].all()
    with pytest.raises(KeyboardInterrupt), journal:
        raise KeyboardInterrupt
    assert journal.read()[1].all()
    with journal:
        pass
    assert not journal.path.exists()
    with journal:
        pass


@pytest.mark.parametrize("row", range(4))
def test_a_row_of_something_else_is_not_there(journal: Journal, row: int) -> None:
    journal.write(0, np.arange(12.0).reshape(4, 3))
    depends = [digest("others") if i == row else each for i, each in enumerate(DEPENDS)]
    there = Journal(journal.path, depends, 3).read()[1]
    assert there.tolist() == [i != row for i in range(4)]


def test_half_a_row_is_not_there(journal: Journal) -> None:
    """Wherever the file ends, and whichever byte is wrong."""
    journal.write(0, np.arange(12.0).reshape(4, 3))
    whole = journal.path.read_bytes()
    size = len(whole) // 4
    for end in range(len(whole)):
        journal.path.write_bytes(whole[:end])
        assert journal.read()[1].sum() == end // size
        journal.path.write_bytes(whole[:end] + bytes([whole[end] ^ 1]) + whole[end + 1 :])
        assert journal.read()[1].tolist() == [i != end // size for i in range(4)]


def test_digests_tell_where_a_part_ends() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest(b"a", 1) == digest(b"a", 1) != digest(b"a", 2)
