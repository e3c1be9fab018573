"""Acoustic scene classification: the complete system of a DCASE 2021 Task 1A report, on fastsep."""

import getpass
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asc.checkpoint import load_model
    from asc.features import LogMel
    from asc.model import Cnn6, Cnn6Sep
    from asc.prediction import probabilities

__all__ = ["Cnn6", "Cnn6Sep", "LogMel", "load_model", "probabilities"]

_HOMES = {
    "Cnn6": "asc.model",
    "Cnn6Sep": "asc.model",
    "LogMel": "asc.features",
    "load_model": "asc.checkpoint",
    "probabilities": "asc.prediction",
}


try:
    getpass.getuser()
except (KeyError, OSError):  # a user id without an entry, as in `docker run --user`
    os.environ["USER"] = f"uid-{os.getuid()}"  # torch's compiler asks for it when it is imported


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: torchaudio alone takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module 'asc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
