"""Data sets: audio files, their layouts, cached log-mels and synthetic scenes."""

from asc.data.audio import fit_length, load_clip, read_audio
from asc.data.clips import Clip, ClipList, unlabelled
from asc.data.folders import read_folders
from asc.data.layouts import audio_files, open_dataset
from asc.data.logmels import LogMelDataset, choose_cache, user_cache
from asc.data.stream import LogMelStream, open_logmels
from asc.data.synthetic import write_synthetic
from asc.data.tau import Split, read_tau

__all__ = [
    "Clip",
    "ClipList",
    "LogMelDataset",
    "LogMelStream",
    "Split",
    "audio_files",
    "choose_cache",
    "fit_length",
    "load_clip",
    "open_dataset",
    "open_logmels",
    "read_audio",
    "read_folders",
    "read_tau",
    "unlabelled",
    "user_cache",
    "write_synthetic",
]
