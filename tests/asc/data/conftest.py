"""Fixtures of the tests of data sets."""

from collections.abc import Callable
from pathlib import Path

import pytest

META = "filename\tscene_label\tidentifier\tsource_label\n"


@pytest.fixture
def tau(tmp_path: Path, wav: Callable[..., Path]) -> Path:
    """A tiny TAU folder: two training clips, one evaluation clip."""
    root = tmp_path / "tau"
    rows = [("bus", "bus-oslo-1-1-a"), ("park", "park-oslo-2-2-s1"), ("tram", "tram-oslo-3-3-s4")]
    for _, name in rows:
        wav(root / "audio" / f"{name}.wav")
    setup = root / "evaluation_setup"
    setup.mkdir()
    files = [f"audio/{name}.wav" for _, name in rows]
    meta = META + "".join(
        f"{file}\t{scene}\toslo-1\t{name.rsplit('-', 1)[1]}\n"
        for file, (scene, name) in zip(files, rows, strict=True)
    )
    (root / "meta.csv").write_text(meta)
    (setup / "fold1_train.csv").write_text(
        f"filename\tscene_label\n{files[0]}\tbus\n{files[1]}\tpark\n"
    )
    (setup / "fold1_evaluate.csv").write_text(f"filename\tscene_label\n{files[2]}\ttram\n")
    (setup / "fold1_test.csv").write_text(f"filename\n{files[2]}\n")
    return root


@pytest.fixture
def class_folders(wav: Callable[..., Path]) -> Callable[..., Path]:
    """class_folders(root, name=count, ...): a folder of so many audio files for each class."""

    def write(root: Path, **counts: int) -> Path:
        for name, count in counts.items():
            for i in range(count):
                wav(root / name / f"{i}.wav", seconds=0.1)
        return root

    return write
