"""The settings of a run, and the three recipes of the DCASE 2021 Task 1A report.

A setting is one field of `Preset` or `Settings`, see `asc.settings`: its options and checks follow
from it, and config.json holds them all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from asc.compute import Precision
from asc.errors import UserError
from asc.settings import About, check

MAX_SEED = 2**32 - 1  # Lightning's

Layers: TypeAlias = Literal["fastsep", "reference"]
Keep: TypeAlias = Literal["last", "best"]  # and the names of the checkpoints


@dataclass(frozen=True)
class Preset:
    """A recipe: what the report's three differ in, then what they share.

    The learning rate of AdamW is cosine annealed per epoch from `lr` down to `min_lr`.

    Raises:
        UserError: a value that does not fit.
    """

    name: str
    loss: Literal["ce", "focal"]
    mixup_alpha: Annotated[float | None, About(above=0)]  # None: no MixUp
    freq_width: Annotated[int, About(at_least=1)]  # SpecAugment, in mel bins, exclusive bound
    time_width: Annotated[int, About(at_least=1)] = 128  # SpecAugment, in frames, exclusive bound
    stripes: Annotated[int, About(at_least=0)] = 2  # per axis
    epochs: Annotated[int, About("Passes over the training clips.", at_least=1)] = 200
    batch_size: Annotated[int, About("Clips a step.", at_least=1)] = 32
    lr: Annotated[float, About(above=0)] = 1e-3
    min_lr: Annotated[float, About(at_least=0)] = 1e-5
    weight_decay: Annotated[float, About(at_least=0)] = 1e-5
    dropout: Annotated[float, About(at_least=0, at_most=1)] = 0.2

    def __post_init__(self) -> None:
        check(self)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("ce_tta", loss="ce", mixup_alpha=None, freq_width=32),
        Preset("ce_mu_tta", loss="ce", mixup_alpha=0.2, freq_width=16),
        Preset("fl_tta", loss="focal", mixup_alpha=None, freq_width=32),
    )
}


def get_preset(name: str) -> Preset:
    """One of the report's recipes, by name.

    Raises:
        UserError: there is none of this name; it lists those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"unknown preset '{name}': choose one of {', '.join(PRESETS)}") from None


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes, besides its data.

    Raises:
        UserError: a value that does not fit.
    """

    preset: Annotated[Preset, About(f"{', '.join(PRESETS)}.")] = PRESETS["ce_tta"]
    seed: Annotated[int, About("Of everything random.", at_least=0, at_most=MAX_SEED)] = 0
    precision: Annotated[
        Precision,
        About("tf32: float32 with TF32 products, on GPUs; bf16: mixed, parameters in float32."),
    ] = "float32"
    layers: Annotated[
        Layers,
        About(
            "What computes: fastsep's fused layers, or for comparison PyTorch's own; a run may "
            "resume with the other."
        ),
    ] = "fastsep"
    keep: Annotated[
        Keep,
        About(
            "The epoch that becomes folded.pt. best is chosen on the clips that `asc evaluate` "
            "scores, which flatters; best.ckpt holds it in any case."
        ),
    ] = "last"
    sync_batch_norm: Annotated[
        bool,
        About("Batch statistics of the clips of all --devices together, not of each one's share."),
    ] = False

    def __post_init__(self) -> None:
        check(self)

    def override(self, given: Mapping[str, Any]) -> "Settings":
        """The settings with other values for some fields.

        Args:
            given: by name of a field of `Settings` or of its preset, whose own name is the value of
                "preset". None leaves a field as it is.

        Raises:
            UserError: an unknown preset, or a value that does not fit.
        """
        given = {name: value for name, value in given.items() if value is not None}
        name = given.pop("preset", self.preset.name)
        preset = self.preset if name == self.preset.name else get_preset(name)
        recipe = {f.name: given.pop(f.name) for f in fields(Preset) if f.name in given}
        return replace(self, preset=replace(preset, **recipe), **given)

    def with_epochs(self, epochs: int) -> "Settings":
        """The settings with another number of epochs."""
        return replace(self, preset=replace(self.preset, epochs=epochs))


def may_extend(run: Settings, asked: Settings) -> bool:
    """Whether a run may go on with settings: its own, but for more epochs or other layers."""
    epochs = asked.preset.epochs
    mine = replace(run.with_epochs(epochs), layers=asked.layers)
    return epochs >= run.preset.epochs and mine == asked


def read_settings(out: Path) -> Settings:
    """The settings of the run in a folder; what an older run did not know has its default.

    Raises:
        UserError: there is no run, or its config.json is damaged.
    """
    path = out / "config.json"
    if not path.is_file():
        raise UserError(f"{out}: there is no run to resume (no file config.json)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name: config[f.name] for f in fields(Settings) if f.name in config}
        return Settings(**known | {"preset": Preset(**config["preset"])})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not the configuration of a run, or is damaged") from error


def resumed_settings(out: Path, given: Mapping[str, Any]) -> Settings:
    """The settings that the run in a folder goes on with: its own, or with more epochs.

    Args:
        out: the run's folder.
        given: settings asked for nevertheless, as `Settings.override` takes them.

    Raises:
        UserError: as `read_settings`, or other settings were given.
    """
    settings = read_settings(out)
    asked = settings.override(given)
    if not may_extend(settings, asked):
        names = [f"--{name.replace('_', '-')}" for name in given if given[name] is not None]
        raise UserError(
            f"{out}: a run resumes with its own settings (see its config.json), so leave out "
            + " and ".join(names)
            + f"; only epochs may be more than its {settings.preset.epochs}"
        )
    return asked
