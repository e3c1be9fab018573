import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest
import typer

from asc.cli.options import with_settings
from asc.settings import options
from asc.task import FRAMES, N_MELS
from asc.training.settings import Settings

NAMES = [
    "preset", "epochs", "batch_size", "seed", "precision", "layers", "keep", "sync_batch_norm"
]  # fmt: skip


def command(data: str, given: dict[str, Any], resume: bool = False) -> None:
    """Does something."""
    command.called_with = (data, given, resume)  # type: ignore[attr-defined]


def test_settings_take_the_place_of_given() -> None:
    made = with_settings(command)
    assert made.__doc__ == "Does something."
    assert list(inspect.signature(made).parameters) == ["data", *NAMES, "resume"]
    made(data="x", resume=True, **dict.fromkeys(NAMES, 1))
    assert command.called_with == ("x", dict.fromkeys(NAMES, 1), True)  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", list(options(Settings)), ids=lambda option: option.name)
def test_an_option_says_what_its_setting_does(option: Any) -> None:
    parameter = inspect.signature(with_settings(command)).parameters[option.name]
    kind, described = get_args(parameter.annotation)
    assert parameter.default is None and type(None) in get_args(kind)  # not asked for
    assert isinstance(described, typer.models.OptionInfo)
    assert (described.min, described.max) == (option.about.at_least, option.about.at_most)
    assert (described.show_default, described.help) == (option.default, option.about.help)


def test_defaults_stand_in_the_help(asc_: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = asc_("train", "--help")
    assert code == 0
    for part in ("--preset", "ce_tta", "--epochs", "200", "--batch-size", "32", "--precision"):
        assert part in output


def test_memory_stands_in_the_help(asc_: Callable[..., tuple[int, str, str]]) -> None:
    """Of training alone: evaluation holds a few clips, however many there are."""
    words = {name: " ".join(asc_(name, "--help")[1].split()) for name in ("train", "evaluate")}
    assert f"{4 * FRAMES * N_MELS / 1e6:.2f} MB of memory a clip" in words["train"]
    assert "memory a clip" not in words["evaluate"]
    assert "without one they are computed as they are needed" in words["evaluate"]
