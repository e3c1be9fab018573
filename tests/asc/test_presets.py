import pytest

from asc.errors import UserError
from asc.presets import PRESETS, get_preset


def test_the_three_recipes() -> None:
    differences = {p.name: (p.loss, p.mixup_alpha, p.freq_width) for p in PRESETS.values()}
    assert differences == {
        "ce_tta": ("ce", None, 32),
        "ce_mu_tta": ("ce", 0.2, 16),
        "fl_tta": ("focal", None, 32),
    }
    for name, preset in PRESETS.items():
        assert get_preset(name) is preset


def test_unknown_preset_lists_the_choices() -> None:
    with pytest.raises(UserError, match=r"'best'.*ce_tta, ce_mu_tta, fl_tta"):
        get_preset("best")
