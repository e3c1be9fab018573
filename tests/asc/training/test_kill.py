"""kill -9 at random moments. By hand more often: KILLS=30 pytest tests/asc/training/test_kill.py"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from asc.checkpoint import load_trainable
from asc.data import LogMelDataset, load_clip, open_dataset
from asc.features import LogMel
from asc.training.callbacks import validated
from asc.training.run import fit_data
from asc.training.settings import PRESETS, Settings

KILLS = int(os.environ.get("KILLS", "3"))
SETTINGS = Settings(replace(PRESETS["ce_mu_tta"], epochs=4, batch_size=2))


def test_killed_runs_end_as_if_they_had_not_been(
    tmp_path: Path, wav: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the server finds a clone without kernels in the current folder before what is installed.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    data = tmp_path / "data"
    for name in ("a", "b"):
        for i in range(5):
            wav(data / name / f"{i}.wav", hertz=200 + 100 * i, seconds=0.2)
    context = get_context("forkserver")
    context.set_forkserver_preload(["asc.training.run"])

    def start(out: Path, **options: Any) -> Any:
        process = context.Process(target=fit_data, args=(data, SETTINGS, out), kwargs=options)
        process.start()
        return process

    begun = time.monotonic()
    whole = start(tmp_path / "whole", cache=tmp_path / "cache")
    whole.join(timeout=600)
    assert whole.exitcode == 0
    seconds = time.monotonic() - begun
    expected = load_trainable(tmp_path / "whole" / "last.ckpt").state_dict()

    random_seed = random.randrange(2**32)
    print(f"kills at the moments of seed {random_seed}")
    moment = random.Random(random_seed)
    out, cache = tmp_path / "run", tmp_path / "killed-cache"
    kills = 0
    while True:
        resume = (out / "config.json").exists()
        process = start(out, cache=cache, resume=resume)
        if kills < KILLS:
            during_build = kills % 3 == 0 and not list(cache.glob("*.npy"))
            if during_build:
                while process.is_alive() and not list(cache.glob("*.part")):
                    time.sleep(0.001)
            process.join(moment.uniform(0, 0.1 if during_build else seconds))
        else:
            process.join()
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            for path in out.glob("*.ckpt"):
                load_trainable(path)
                assert validated(path)
            continue
        assert process.exitcode == 0
        for name, tensor in load_trainable(out / "last.ckpt").state_dict().items():
            assert torch.equal(tensor, expected[name]), name
        for split in ("train", "evaluate"):
            clips = open_dataset(data, split)
            logmels = LogMelDataset(clips, cache)
            for i, clip in enumerate(clips):
                assert torch.equal(logmels[i][0], LogMel()(load_clip(clip.path))[0])
        if kills == KILLS:
            return
        shutil.rmtree(out)
        shutil.rmtree(cache)
