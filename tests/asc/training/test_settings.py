import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from asc.errors import UserError
from asc.training.settings import (
    PRESETS,
    Preset,
    Settings,
    get_preset,
    read_settings,
    resumed_settings,
)

Refused = Callable[..., Any]
BAD = [  # a field of Settings or of Preset, a value, what is said of it
    ("epochs", 0, "epochs must be at least 1, got 0"),
    ("epochs", 2.5, "epochs must be an integer, got 2.5"),
    ("batch_size", -3, "batch_size must be at least 1, got -3"),
    ("loss", "mse", "loss must be one of ce, focal, got 'mse'"),
    ("mixup_alpha", 0, "mixup_alpha must be above 0, got 0"),
    ("lr", "fast", "lr must be a finite number, got 'fast'"),
    ("dropout", 1.5, "dropout must be at most 1, got 1.5"),
    ("seed", -1, "seed must be at least 0, got -1"),
    ("seed", 2**32, "seed must be at most 4294967295, got 4294967296"),
    ("precision", "fp16", "precision must be one of float32, tf32, bf16, got 'fp16'"),
]
IN_PRESET = {f.name for f in fields(Preset)}


def write(out: Path, **config: Any) -> None:
    (out / "config.json").write_text(json.dumps(config))


def test_the_three_recipes() -> None:
    differences = {p.name: (p.loss, p.mixup_alpha, p.freq_width) for p in PRESETS.values()}
    assert differences == {
        "ce_tta": ("ce", None, 32),
        "ce_mu_tta": ("ce", 0.2, 16),
        "fl_tta": ("focal", None, 32),
    }
    for name, preset in PRESETS.items():
        assert get_preset(name) is preset


def test_unknown_preset_lists_the_choices(refused: Refused) -> None:
    with pytest.raises(UserError, match=r"'best'.*ce_tta, ce_mu_tta, fl_tta"):
        get_preset("best")
    with refused("'best'", "ce_tta, ce_mu_tta, fl_tta"):
        Settings().override({"preset": "best"})
    with refused("preset must be a Preset, got 'best'"):
        Settings("best")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values_from_code(name: str, value: Any, message: str, refused: Refused) -> None:
    with refused(message):
        replace(get_preset("ce_tta") if name in IN_PRESET else Settings(), **{name: value})
    with refused(message):
        Settings().override({name: value})


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values_from_a_file(
    name: str, value: Any, message: str, tmp_path: Path, refused: Refused
) -> None:
    config = asdict(Settings())
    (config["preset"] if name in IN_PRESET else config)[name] = value
    write(tmp_path, **config)
    with refused(tmp_path / "config.json", message):
        read_settings(tmp_path)


def test_override_takes_fields_of_both() -> None:
    settings = Settings().override({"preset": "fl_tta", "epochs": 3, "seed": 5, "precision": None})
    assert settings == Settings(replace(PRESETS["fl_tta"], epochs=3), seed=5)
    assert settings.override({"preset": "fl_tta", "epochs": None}) == settings  # keeps its epochs
    assert settings.override({"preset": "ce_tta"}) == Settings(seed=5)
    assert Settings().override({}) == Settings()


def test_runs_from_before_the_choice_of_a_precision(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, preset=asdict(settings.preset), seed=1)
    assert read_settings(tmp_path) == settings


@pytest.mark.parametrize(
    "config",
    [{"seed": 1}, {"preset": "ce_tta"}, {"preset": {"name": "x"}}, {"preset": {"new": 1}}, {}],
)
def test_files_that_are_no_configuration(
    config: dict[str, Any], tmp_path: Path, refused: Refused
) -> None:
    write(tmp_path, **config)
    with refused(tmp_path / "config.json", "is not the configuration of a run, or is damaged"):
        read_settings(tmp_path)


def test_a_run_resumes_with_its_own_settings(
    tmp_path: Path, settings: Settings, refused: Refused
) -> None:
    write(tmp_path, **asdict(settings), classes=["x"])
    nothing = {"preset": None, "epochs": None, "seed": None}
    assert resumed_settings(tmp_path, nothing) == settings
    same = {"preset": "ce_mu_tta", "epochs": 3, "batch_size": 4, "seed": 1, "precision": "float32"}
    assert resumed_settings(tmp_path, same) == settings
    for given in (
        {"preset": "ce_tta"},
        {"epochs": 2},
        {"batch_size": 5},
        {"seed": 2},
        {"precision": "bf16"},
    ):
        (name,) = given
        with refused(tmp_path, f"leave out --{name.replace('_', '-')}"):
            resumed_settings(tmp_path, nothing | given)
    assert resumed_settings(tmp_path, {"epochs": 9}) == settings.with_epochs(9)
    with refused(tmp_path, "only epochs may be more than its 3"):
        resumed_settings(tmp_path, {"epochs": 9, "seed": 2})
    with refused("no run to resume"):
        resumed_settings(tmp_path / "new", nothing)
