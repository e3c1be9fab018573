"""Data sets: audio files, their layouts, cached log-mels and synthetic scenes."""

from asc.data.audio import fit_length, load_clip, read_audio
from asc.data.folders import read_folders
from asc.data.layouts import open_dataset
from asc.data.logmels import LogMels
from asc.data.scenes import DEVICES, SCENES, Clip, ClipList
from asc.data.synthetic import write_synthetic
from asc.data.tau import Split, read_tau

__all__ = [
    "DEVICES",
    "SCENES",
    "Clip",
    "ClipList",
    "LogMels",
    "Split",
    "fit_length",
    "load_clip",
    "open_dataset",
    "read_audio",
    "read_folders",
    "read_tau",
    "write_synthetic",
]
