"""Synthetic acoustic scenes in the TAU layout, for demos and tests where no real data is at hand.

Every scene is a recipe of five processes: a noise background with a spectral tilt and slow swells,
a murmur (syllabic noise band), a hum (harmonic, drifting), knocks (resonant impulses) and sweeps
(gliding tones). Places and clips vary levels and frequencies so much that the scenes overlap; nine
devices colour, compress and add noise. It resembles the *structure* of the real task, not its
sound: scores on it say that the software works, nothing about real recordings.
"""

import csv
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from asc.errors import UserError
from asc.files import check_folder
from asc.progress import tracked
from asc.task import DEVICES, SAMPLE_RATE, SCENES
from asc.threads import in_threads

Array = NDArray[np.float32]

CITIES = ("helsinki", "lisbon", "london", "lyon", "paris", "prague", "vienna")
EVALUATE_SHARE = 0.3
CLIPS_PER_PLACE = 3
MIN_SECONDS = 0.1

README = """\
SYNTHETIC acoustic scenes. These files are not recordings.

They were computed from noise, hums, knocks and gliding tones (asc.data.write_synthetic, \
seed {seed}).
The layout, file names and lists follow TAU Urban Acoustic Scenes 2020 Mobile, so that software made
for that data set can be tried and tested without it. City and scene names are labels only. Scores
obtained on this data say nothing about real recordings.

{clips} clips of {seconds} s, 44.1 kHz, mono, 24 bit; ten scenes; nine simulated devices, of which
s4, s5 and s6 occur in the evaluation split only.
"""


@dataclass(frozen=True)
class Recipe:
    """Typical sound of a scene; levels in dB relative to the background's power."""

    tilt: float  # of the background, dB per octave
    swell: float  # standard deviation of the background's slow level changes, dB
    murmur: tuple[float, float]  # level, centre in Hz
    hum: tuple[float, float]  # level, fundamental in Hz
    knocks: tuple[float, float, float, float]  # level, per second, Hz, regularity (1: Poisson)
    sweeps: tuple[float, float, float, float, float]  # level, per second, from Hz, to Hz, seconds


RECIPES = {
    "airport": Recipe(-4, 1.5, (-5, 600), (-8, 110), (-13, 1, 1500, 1), (-6, 0.5, 900, 1200, 0.5)),
    "bus": Recipe(-7.4, 4, (-12, 650), (1, 35), (-10, 1, 250, 1), (-16, 0.2, 1800, 1500, 0.4)),
    "metro": Recipe(-6, 4, (-14, 700), (-5, 100), (-1, 2.5, 200, 8), (-8, 0.4, 2500, 3400, 1.2)),
    "metro_station": Recipe(
        -5.2, 7, (-6, 650), (-6, 65), (-9, 2, 900, 2), (-9, 0.4, 700, 900, 0.6)
    ),
    "park": Recipe(-4.6, 2.5, (-14, 850), (-17, 50), (-14, 1, 900, 1), (-4, 1.8, 3000, 4300, 0.2)),
    "public_square": Recipe(
        -5.4, 3.5, (-4, 900), (-13, 50), (-6, 1, 700, 1), (-7, 1, 2200, 2900, 0.3)
    ),
    "shopping_mall": Recipe(
        -3.2, 1, (0, 700), (-10, 120), (-11, 2, 1800, 2), (-13, 0.3, 1200, 1200, 0.5)
    ),
    "street_pedestrian": Recipe(
        -4.6, 2, (-3, 850), (-15, 50), (-1, 3.4, 1500, 4), (-14, 0.3, 1800, 2400, 0.3)
    ),
    "street_traffic": Recipe(
        -5.6, 7, (-14, 750), (-4, 45), (-13, 0.7, 350, 1), (-15, 0.2, 700, 500, 0.6)
    ),
    "tram": Recipe(-6.4, 3.5, (-10, 700), (-3, 65), (-7, 1.5, 280, 6), (-3, 0.5, 1500, 2200, 1.4)),
}


@dataclass(frozen=True)
class Device:
    """A microphone and its recorder."""

    low_cut: float  # Hz
    high_cut: float  # Hz
    ripple: float  # dB, standard deviation of its frequency response in between
    gain: float  # dB
    noise: float  # dB re full scale
    limit: float  # soft clipping, in multiples of the clip's rms


DEVICE_TABLE = {
    "a": Device(20, 20_000, 0.5, 0, -85, 20),
    "b": Device(90, 16_000, 2.0, -2, -72, 8),
    "c": Device(60, 17_000, 2.0, 1, -75, 8),
    "s1": Device(120, 15_000, 2.5, 1, -70, 5),
    "s2": Device(180, 13_000, 2.5, -3, -70, 4),
    "s3": Device(100, 14_000, 3.0, 2, -66, 3),
    "s4": Device(150, 12_000, 3.5, -2, -66, 3),
    "s5": Device(220, 13_000, 4.0, 3, -64, 2.5),
    "s6": Device(250, 10_000, 4.5, -4, -62, 2),
}
TRAIN_DEVICES = ("b", "c", "s1", "s2", "s3")  # in turn; every other training clip is device a


def write_synthetic(
    out: Path, *, clips_per_scene: int = 12, seconds: float = 10.0, seed: int = 0
) -> None:
    """Writes a synthetic ten-scene, nine-device data set in the TAU layout.

    About 30 % of the clips are for evaluation; places do not cross the splits, and devices s4-s6
    occur in evaluation only. The same arguments give the same audio. Folders above `out` are made;
    what is in it appears only once it is complete.

    Args:
        out: the folder to make; may exist if it is empty.
        clips_per_scene: at least 2 (one to train on, one to evaluate on).
        seconds: length of a clip, at least 0.1.
        seed: not negative.

    Raises:
        UserError: out is a file or not empty, cannot be written, or an argument is out of range.
        OSError: nothing can be made there, see `asc.files.check_folder`.
    """
    if clips_per_scene < 2:
        raise UserError(f"clips per scene must be at least 2, got {clips_per_scene}")
    if not MIN_SECONDS <= seconds < float("inf"):
        raise UserError(f"seconds must be at least {MIN_SECONDS}, got {seconds}")
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}")
    check_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; choose a new folder")

    root = out.resolve()
    # A folder that is there stays the same one: it may be a mount, or somebody else's.
    temporary = (root if root.exists() else root.parent) / f".{root.name[:32]}.{os.getpid()}.tmp"
    try:
        (temporary / "audio").mkdir(parents=True)
        (temporary / "evaluation_setup").mkdir()
        _write_into(temporary, clips_per_scene, round(seconds * SAMPLE_RATE), seed)
        if temporary.parent == root:
            for path in temporary.iterdir():
                path.rename(root / path.name)
        else:
            temporary.rename(root)
    except OSError as error:
        raise UserError(f"{out}: cannot write the data set ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Plan:
    """Everything about a clip but its sound."""

    scene: str
    city: str
    place: int
    segment: int
    device: str
    split: str

    @property
    def name(self) -> str:
        return f"{self.scene}-{self.city}-{self.place}-{self.segment}-{self.device}"


def _plan(clips_per_scene: int, seed: int) -> Iterator[_Plan]:
    rng = np.random.default_rng([seed, 0])
    evaluate = max(1, round(EVALUATE_SHARE * clips_per_scene))
    place = segment = evaluated = 0
    for number, scene in enumerate(SCENES):
        for split, count in (("train", clips_per_scene - evaluate), ("evaluate", evaluate)):
            for i in range(count):
                if i % CLIPS_PER_PLACE == 0:
                    place, city = place + 1, str(rng.choice(CITIES))
                if split == "evaluate":
                    device = DEVICES[evaluated % len(DEVICES)]
                    evaluated += 1
                else:
                    device = "a" if i % 2 == 0 else TRAIN_DEVICES[(i // 2 + number) % 5]
                yield _Plan(scene, city, place, segment, device, split)
                segment += 1


def _write_into(root: Path, clips_per_scene: int, samples: int, seed: int) -> None:
    plans = list(_plan(clips_per_scene, seed))

    def write(plan: _Plan) -> None:
        audio = synthesize(plan.scene, plan.device, (seed, plan.place, plan.segment), samples)
        buffer = io.BytesIO()  # libsndfile calls a full disk a "System error"
        soundfile.write(buffer, audio, SAMPLE_RATE, format="WAV", subtype="PCM_24")
        (root / "audio" / f"{plan.name}.wav").write_bytes(buffer.getbuffer())

    with in_threads(write, plans) as written:
        for _ in tracked(written, "synthetic scenes", total=len(plans)):
            pass

    def write_table(name: str, header: list[str], rows: list[list[str]]) -> None:
        with (root / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])

    def listed(split: str) -> list[list[str]]:
        return [[f"audio/{p.name}.wav", p.scene] for p in plans if p.split == split]

    write_table(
        "meta.csv",
        ["filename", "scene_label", "identifier", "source_label"],
        [[f"audio/{p.name}.wav", p.scene, f"{p.city}-{p.place}", p.device] for p in plans],
    )
    for split in ("train", "evaluate"):
        table = f"evaluation_setup/fold1_{split}.csv"
        write_table(table, ["filename", "scene_label"], listed(split))
    names = [[name] for name, _ in listed("evaluate")]
    write_table("evaluation_setup/fold1_test.csv", ["filename"], names)
    text = README.format(seed=seed, clips=len(plans), seconds=samples / SAMPLE_RATE)
    (root / "README.txt").write_text(text, encoding="utf-8")


def synthesize(scene: str, device: str, key: tuple[int, int, int], samples: int) -> Array:
    """One clip: (samples,) float32 in [-1, 1].

    Args:
        scene: one of SCENES.
        device: one of DEVICES.
        key: (seed, place, segment); the place sets the clip's character, the segment its course.
        samples: the clip's length.
    """
    place_rng = np.random.default_rng([1, *key[:2], SCENES.index(scene)])
    rng = np.random.default_rng([2, *key, SCENES.index(scene)])
    recipe = RECIPES[scene]

    def level(decibels: float) -> float:  # as amplitude
        return _amplitude(decibels + place_rng.normal(0, 1.2) + rng.normal(0, 1))

    def pitch(hertz: float) -> float:
        return float(hertz * 2 ** (place_rng.normal(0, 0.12) + rng.normal(0, 0.08)))

    octave = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 30) / 1000)
    tilt = recipe.tilt + place_rng.normal(0, 0.4)
    curve = tilt * octave + _curve(place_rng, octave, 1)
    x = _unit(_shaped_noise(rng, curve, samples))
    x *= _amplitude(recipe.swell * _smooth(rng, samples, 0.5))

    decibels, hertz = recipe.murmur
    band = -24 * np.abs(octave - np.log2(pitch(hertz) / 1000))  # dB, falling on both sides
    murmur = _shaped_noise(rng, band, samples) * _amplitude(7 * _smooth(rng, samples, 5))
    x += level(decibels) * _unit(murmur)

    decibels, hertz = recipe.hum
    x += level(decibels) * _unit(_hum(rng, pitch(hertz), samples))

    decibels, rate, hertz, regularity = recipe.knocks
    knocks = _knocks(rng, rate * 2 ** rng.normal(0, 0.4), pitch(hertz), regularity, samples)
    x += level(decibels) * knocks

    decibels, rate, first, last, duration = recipe.sweeps
    shift = pitch(1)
    count = rng.poisson(rate * 2 ** rng.normal(0, 0.5) * samples / SAMPLE_RATE)
    x += level(decibels) * _sweeps(rng, count, first * shift, last * shift, duration, samples)

    x *= _amplitude(-32 + place_rng.normal(0, 2)) / _rms(x)
    return _record(rng, x, device)


def _record(rng: np.random.Generator, x: Array, device: str) -> Array:
    """Plays a clip into a device: frequency response, soft clipping, gain, noise."""
    spec = DEVICE_TABLE[device]
    taps = 1024
    octave = np.log2(np.maximum(np.fft.rfftfreq(taps, 1 / SAMPLE_RATE), 10) / 1000)
    # The response belongs to the device, whatever the seed of the data set.
    curve = _curve(np.random.default_rng([3, DEVICES.index(device)]), octave, spec.ripple)
    curve -= 12 * np.maximum(np.log2(spec.low_cut / 1000) - octave, 0)
    curve -= 60 * np.maximum(octave - np.log2(spec.high_cut / 1000), 0)
    fir = np.roll(np.fft.irfft(_amplitude(curve), taps), taps // 2) * np.hanning(taps)
    response = np.fft.rfft(fir, len(x)).astype(np.complex64)
    y = np.fft.irfft(np.fft.rfft(x) * response, len(x)).astype(np.float32)
    ceiling = spec.limit * _rms(y)
    y = ceiling * np.tanh(y / ceiling) * np.float32(_amplitude(spec.gain))
    y += np.float32(_amplitude(spec.noise)) * rng.standard_normal(len(y), dtype=np.float32)
    return np.clip(y, -1, 1)


def _hum(rng: np.random.Generator, hertz: float, samples: int) -> Array:
    """Harmonics falling geometrically, from one cosine: sum r^k cos(k phase), k >= 1."""
    drift = 2 ** (0.04 * _smooth(rng, samples, 0.5).astype(np.float64))
    phase = 2 * np.pi * (rng.random() + np.cumsum(hertz / SAMPLE_RATE * drift))
    r = rng.uniform(0.5, 0.8)
    cosine = np.cos(np.mod(phase, 2 * np.pi).astype(np.float32))
    return ((1 - r * cosine) / (1 - 2 * r * cosine + r * r) - 1).astype(np.float32)


def _knocks(
    rng: np.random.Generator, rate: float, hertz: float, regularity: float, samples: int
) -> Array:
    """Impulses at gamma-distributed intervals through a decaying resonance; unit rms at 1/s."""
    seconds = samples / SAMPLE_RATE
    intervals = rng.gamma(regularity, 1 / (rate * regularity), int(rate * seconds * 4) + 8)
    times = np.cumsum(intervals) - intervals[0] * rng.random()
    index = (times * SAMPLE_RATE).astype(np.int64)
    index = index[index < samples]
    train = np.zeros(samples, dtype=np.float32)
    train[index] = 2 ** rng.normal(0, 0.7, len(index))
    t = np.arange(min(samples, SAMPLE_RATE // 4), dtype=np.float32) / SAMPLE_RATE
    ring = np.exp(-t * hertz / rng.uniform(2, 6)) * np.sin(2 * np.pi * hertz * t)
    ring *= np.sqrt(SAMPLE_RATE / np.square(ring).sum())
    spectrum = np.fft.rfft(train) * np.fft.rfft(ring.astype(np.float32), samples)
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def _sweeps(
    rng: np.random.Generator, count: int, first: float, last: float, duration: float, samples: int
) -> Array:
    """Gliding tones under Hann envelopes, at random times."""
    x = np.zeros(samples, dtype=np.float32)
    for _ in range(count):
        length = min(samples, max(2, int(duration * 2 ** rng.normal(0, 0.5) * SAMPLE_RATE)))
        start = rng.integers(0, samples - length + 1)
        glide = np.geomspace(first, last, length) * 2 ** rng.normal(0, 0.2)
        tone = np.sin(2 * np.pi * np.cumsum(glide / SAMPLE_RATE)) * np.hanning(length)
        x[start : start + length] += 2 * tone.astype(np.float32)
    return x


def _shaped_noise(rng: np.random.Generator, decibels: NDArray[np.float64], samples: int) -> Array:
    """Gaussian noise with a power spectrum given in dB at the rfft frequencies."""
    spectrum = rng.standard_normal((len(decibels), 2), dtype=np.float32).view(np.complex64)[:, 0]
    spectrum *= _amplitude(decibels).astype(np.float32)
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def _smooth(rng: np.random.Generator, samples: int, rate: float) -> Array:
    """Slow random course: unit normal knots, `rate` a second, joined by straight lines."""
    knots = int(np.ceil(rate * samples / SAMPLE_RATE)) + 2
    position = np.arange(samples) * (rate / SAMPLE_RATE) + rng.random()
    return np.interp(position, np.arange(knots), rng.standard_normal(knots)).astype(np.float32)


def _curve(
    rng: np.random.Generator, octave: NDArray[np.float64], sigma: float
) -> NDArray[np.float64]:
    """A random frequency response in dB: normal knots one octave apart."""
    knots = np.arange(-6, 6)
    return np.interp(octave, knots, rng.normal(0, sigma, len(knots)))


def _amplitude(decibels: Any) -> Any:
    """A level in dB, scalar or array, as a factor on the amplitude."""
    return 10 ** (decibels / 20)


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _unit(x: Array) -> Array:
    return x / _rms(x)
