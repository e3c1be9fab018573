"""Which tile a kernel uses: looked up by the class of the layer, measured where asked to.

A class is the kernel, the channels, bins and pooling of the layer, and the arithmetic; the batch
size and the number of frames do not matter. Tables are JSON files, class -> tile, one a device:
first the user's own in FASTSEP_CACHE_DIR (default ~/.cache/fastsep), then the ones in the package.
With FASTSEP_TUNE=1 a class that no table holds is measured at its first use, which takes seconds,
and added to the user's table; otherwise it gets a default. Tiles change the order of sums, so
results may differ in the last bits between tables; for one table they are reproducible.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import triton

from fastsep.triton.shared import Size
from fastsep.triton.tiles import Launch, Tile, candidates_for


def choose(
    kind: str, size: Size, pool: int, arithmetic: str, plan: Callable[[Tile], Launch]
) -> Tile:
    """The tile for a layer; plan makes the launch that would run with a tile, to be timed."""
    candidates = candidates_for(kind, size, arithmetic)
    if len(candidates) == 1 or triton.knobs.runtime.interpret:
        return candidates[0]
    device = torch.cuda.get_device_name()
    cin, cout, bins = (triton.next_power_of_2(max(s, 1)) for s in
                       (size.channels_in, size.channels_out, size.bins))  # fmt: skip
    layer = f"{kind}, {cin} -> {cout} channels, {bins} bins, pool {pool}, {arithmetic}"
    known = _tables(device)
    if layer not in known:
        if os.environ.get("FASTSEP_TUNE") != "1" or torch.cuda.is_current_stream_capturing():
            return candidates[0]
        known[layer] = min(candidates, key=lambda tile: _milliseconds(plan(tile)))
        try:
            _save(device, layer, known[layer])
        except OSError as error:
            warnings.warn(f"fastsep cannot keep the tile it chose: {error}", stacklevel=2)
    return known[layer]


def _milliseconds(job: Launch) -> float:
    try:
        return triton.testing.do_bench(job.run, warmup=5, rep=20, return_mode="median")
    except triton.runtime.errors.OutOfResources:  # shared memory, on a smaller GPU
        return float("inf")


@cache
def _tables(device: str) -> dict[str, Tile]:
    known: dict[str, Tile] = {}
    for path in (_PACKAGED / _name(device), _cached(device)):  # the user's own wins
        try:
            entries = json.loads(path.read_text())
            known.update({layer: Tile(**tile) for layer, tile in entries.items()})
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            warnings.warn(f"fastsep ignores the table of tiles {path}: {error}", stacklevel=2)
    return known


def _save(device: str, layer: str, tile: Tile) -> None:
    """Into the user's table, by replacing it whole: another process may be reading or writing."""
    path = _cached(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[layer] = tile._asdict()
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _cached(device: str) -> Path:
    folder = os.environ.get("FASTSEP_CACHE_DIR") or os.path.expanduser("~/.cache/fastsep")
    return Path(folder) / _name(device)


def _name(device: str) -> str:
    return f"triton-{re.sub('[^A-Za-z0-9]+', '-', device)}.json"


_PACKAGED = Path(__file__).parent / "tables"
