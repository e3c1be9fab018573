import base64
import io
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from asc.data import ClipList, unlabelled
from asc.report import mistakes
from asc.report.mistakes import names_of, worst_mistakes

Wav = Callable[..., Path]

P = np.array([[0.1, 0.9], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
Y = np.array([0, 0, 0, 1, 0])


@pytest.fixture
def clips(wav: Wav, tmp_path: Path) -> ClipList:
    return unlabelled([wav(tmp_path / f"{i}.wav", 1000, 0.5) for i in range(5)])


def content(uri: str, kind: str) -> io.BytesIO:
    head, _, data = uri.partition(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(data))


def test_the_worst_come_first(clips: ClipList, monkeypatch: pytest.MonkeyPatch) -> None:
    found = worst_mistakes(P, Y, clips)
    assert [mistake.index for mistake in found] == [0, 4, 1]  # clips 2 and 3 are right
    assert [mistake.log_loss for mistake in found] == pytest.approx(-np.log([0.1, 0.3, 0.4]))
    monkeypatch.setattr(mistakes, "MOST", 2)
    assert [mistake.index for mistake in worst_mistakes(P, Y, clips)] == [0, 4]
    assert worst_mistakes(P, 1 - P.argmax(1) ^ 1, clips) == []


def test_picture_and_excerpt_are_of_the_clip(clips: ClipList) -> None:
    mistake = worst_mistakes(P, Y, clips)[0]
    image = Image.open(content(mistake.picture, "image/png"))
    assert image.size == (431 // 2, 128)
    # On Slaney's scale 1 kHz, the tone, is 15 mels, and what is above goes by factors of 6.4.
    highest = 15 + 27 * math.log(22.05) / math.log(6.4)
    rows = np.asarray(image.convert("RGB"), dtype=float).sum(2).mean(1)
    assert 127 - rows.argmax() == pytest.approx(128 * 15 / highest, abs=2)
    assert mistake.audio is not None
    samples, rate = soundfile.read(content(mistake.audio, "audio/wav"))
    assert (rate, samples.shape) == (16_000, (8_000,))  # once, not repeated to 10 s
    assert np.abs(np.fft.rfft(samples)).argmax() == 500  # 1000 Hz in 0.5 s


def test_long_clips_are_cut_and_sound_is_limited(wav: Wav, tmp_path: Path) -> None:
    clips = unlabelled([wav(tmp_path / f"{i}.wav", seconds=10.5) for i in range(2)])
    found = worst_mistakes(P[:2], Y[:2], clips)
    assert found[0].audio is not None
    assert len(soundfile.read(content(found[0].audio, "audio/wav"))[0]) == 160_000
    assert mistakes.MOST * len(found[0].audio) < 6e6
    assert all(
        mistake.audio is None for mistake in worst_mistakes(P[:2], Y[:2], clips, audio=False)
    )


def test_what_is_odd_about_a_file_is_not_said_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(44_100), 44_100)
    level = logging.getLogger("asc").level
    worst_mistakes(P[:1], Y[:1], unlabelled([tmp_path / "silence.wav"]))
    assert caplog.records == [] and logging.getLogger("asc").level == level


def test_names_by_probability() -> None:
    row = np.array([0.1, 0.6, 0.1, 0.2])
    assert names_of("abcd", row) == [("b", 0.6), ("d", 0.2), ("a", 0.1)]
