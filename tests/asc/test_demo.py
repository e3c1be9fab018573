from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asc import demo
from asc.demo import conclusion, next_commands, run
from asc.errors import UserError
from asc.metrics import score
from asc.speed import Speed


def test_the_conclusion_is_what_came_out() -> None:
    plain = score(np.array([[0.8, 0.2]]), np.array([0]), ("a", "b"), ["a"])
    better = replace(plain, log_loss_macro=0.1, ece=0.05)
    speed = Speed(0.004, 0.05, "channels_last", "")
    for before, after, verdict in ((plain, better, "helps"), (better, plain, "does not help")):
        augmentation, time = conclusion(before, after, speed)
        assert f"augmentation {verdict} here" in augmentation
        assert f"from {before.log_loss_macro:.3f} to {after.log_loss_macro:.3f}" in augmentation
        assert f"from {100 * before.ece:.1f} % to {100 * after.ece:.1f} %" in augmentation
        assert "4.0 ms" in time and "50.0 ms" in time and "channels_last" in time


def test_next_commands_name_what_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "pick_device", lambda name: "cuda")
    out, clip = Path("my demo"), Path("my demo/data/audio/x.wav")
    evaluate, predict = next_commands(out, clip, 0, "cuda")
    assert evaluate == "asc evaluate 'my demo/run/folded.pt' 'my demo/data' --tta 30"
    assert predict == "asc predict 'my demo/run/folded.pt' 'my demo/data/audio/x.wav' --tta 30"
    for command in next_commands(out, clip, 7, "cpu"):
        assert command.endswith("--tta 30 --seed 7 --device cpu")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        run(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
