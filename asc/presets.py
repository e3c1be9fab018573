"""The three training recipes of the DCASE 2021 Task 1A report."""

from dataclasses import dataclass
from typing import Literal

from asc.errors import UserError


@dataclass(frozen=True)
class Preset:
    """What the three recipes differ in, then what they share."""

    name: str
    loss: Literal["ce", "focal"]
    mixup_alpha: float | None  # None: no MixUp
    freq_width: int  # SpecAugment, in mel bins, exclusive bound
    time_width: int = 128  # SpecAugment, in frames, exclusive bound
    stripes: int = 2  # per axis
    epochs: int = 200
    batch_size: int = 32
    lr: float = 1e-3  # AdamW, cosine annealed per epoch down to min_lr
    min_lr: float = 1e-5
    weight_decay: float = 1e-5
    dropout: float = 0.2


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("ce_tta", loss="ce", mixup_alpha=None, freq_width=32),
        Preset("ce_mu_tta", loss="ce", mixup_alpha=0.2, freq_width=16),
        Preset("fl_tta", loss="focal", mixup_alpha=None, freq_width=32),
    )
}


def get_preset(name: str) -> Preset:
    """Look a preset up by name; raises UserError that lists the choices."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"unknown preset '{name}': choose one of {', '.join(PRESETS)}") from None
