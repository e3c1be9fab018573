from collections.abc import Callable
from pathlib import Path

from asc.checkpoint import load_model

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]


def test_info_counts(weights: Path, asc_: Asc) -> None:
    code, output, _ = asc_("info", weights)
    assert code == 0
    for part in ("62 474", "64 330", "124948 B", "124.95 KB of 1000 B", "122.02 KB of 1024 B"):
        assert part in output
    nonzero = sum(int(p.count_nonzero()) for p in load_model(weights).parameters())
    assert f"as float16: {nonzero}" in output
