import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asc.checkpoint import save_folded
from asc.model import Cnn6Sep
from asc.task import SCENES

Asc = Callable[..., tuple[int, str, str]]
OneLine = Rejects = Callable[..., None]
Wav = Callable[..., Path]

SHARED = Path(__file__).parents[3].parent / "shared"


def test_predict(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc, wav: Wav
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [wav(Path("one.wav")), wav(Path("[bold]two.wav"), 2000)]
    code, output, error = asc_("predict", weights, *files, "--json")
    assert code == 0
    short = "2 recordings, one.wav the first, are shorter than 10 s and repeated to fill it"
    assert error == f"asc: {short}\n"
    results = [json.loads(line) for line in output.splitlines()]
    assert [result["file"] for result in results] == [str(file) for file in files]
    for result in results:
        assert result.keys() == {"file", "label", "probabilities", "logits", "masks"}
        assert result["masks"] == 0
        assert tuple(result["probabilities"]) == SCENES
        p = torch.tensor(list(result["probabilities"].values()), dtype=torch.float64)
        logits = torch.tensor(result["logits"], dtype=torch.float64)
        torch.testing.assert_close(p, logits.softmax(0), rtol=1e-12, atol=0)
        assert result["label"] == SCENES[int(p.argmax())]

    code, output, error = asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 4)
    assert code == 0
    augmented = [json.loads(line) for line in output.splitlines()]
    assert all(r["masks"] == 3 for r in augmented)
    assert [r["logits"] for r in augmented] == [r["logits"] for r in results]
    assert [r["probabilities"] for r in augmented] != [r["probabilities"] for r in results]
    assert output == asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 4)[1]
    assert output != asc_("predict", weights, *files, "--json", "--tta", 3, "--seed", 5)[1]

    options = ("--json", "--tta", 3, "--device", "cpu", "--devices")
    one, two = (asc_("predict", weights, *files, *options, devices) for devices in (1, 2))
    assert one[0] == 0 and one == two

    rounded = asc_("predict", weights, *files, "--json", "--precision", "bf16")[1]
    for line, result in zip(rounded.splitlines(), results, strict=True):
        assert json.loads(line)["logits"] == pytest.approx(result["logits"], rel=0.05, abs=0.01)

    code, output, _ = asc_("predict", weights, *files)
    assert code == 0
    for part in ("one.wav", "[bold]two.wav", results[0]["label"]):
        assert part in output


def test_locales_and_names_that_are_not_utf_8(weights: Path, tmp_path: Path, wav: Wav) -> None:
    clip = wav(tmp_path / "clip.wav")
    names = [b"\xff.wav", "\u00fc.wav".encode()]
    for name in names:
        os.link(clip, os.fsencode(tmp_path) + b"/" + name)
    run = subprocess.run(
        [sys.executable, "-m", "asc", "predict", weights, *names],
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for name in ("\\ufffd.wav", "\\xfc.wav"):
        assert name in run.stdout


def test_predict_a_data_set(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asc_: Asc, wav: Wav
) -> None:
    monkeypatch.chdir(tmp_path)
    wav(Path("set/audio/0.wav"))
    Path("set/evaluation_setup").mkdir()
    Path("set/evaluation_setup/fold1_test.csv").write_text("filename\naudio/0.wav\n")
    code, output, _ = asc_("predict", weights, "set", "--json")
    assert code == 0 and json.loads(output)["file"] == "set/audio/0.wav"


def test_a_file_is_named_alike_wherever_it_stands(
    weights: Path, tmp_path: Path, asc_: Asc, wav: Wav
) -> None:
    files = [
        wav(tmp_path / folder / f"{hertz}.wav", hertz) for hertz in (300, 900) for folder in "ab"
    ]
    options = ("--json", "--tta", 3)

    def answers(*paths: Path) -> dict[str, object]:
        lines = asc_("predict", weights, *paths, *options)[1].splitlines()
        return {found["file"]: found["probabilities"] for found in map(json.loads, lines)}

    expected = answers(*files)
    assert answers(*files[::-1]) == expected and len(expected) == 4
    assert answers(files[2]) == {str(files[2]): expected[str(files[2])]}
    a, again, other, _ = expected.values()
    assert a == again != other  # folders do not count


def test_what_cannot_be_read_is_said_and_the_rest_is_done(
    weights: Path, tmp_path: Path, asc_: Asc, one_line: OneLine, wav: Wav
) -> None:
    good, corrupt, silent = (tmp_path / f"{name}.wav" for name in ("good", "corrupt", "n"))
    wav(good, seconds=10), wav(tmp_path / "last.wav", seconds=10)
    corrupt.write_bytes(good.read_bytes()[:20])
    soundfile.write(silent, np.full(44_100, np.nan), 44_100, subtype="FLOAT")
    bad = [corrupt, silent, tmp_path / "missing.wav"]
    for options in ((), ("--json",), ("--window", 10)):
        files = (good, *bad, tmp_path / "last.wav")
        code, output, error = asc_("predict", weights, *files, *options)
        assert code == 2
        for line, path in zip(error.splitlines(), bad, strict=True):
            one_line(line + "\n", path)
        lines = output.splitlines()[options != ("--json",) :]
        assert len(lines) == 2 and "good.wav" in lines[0] and "last.wav" in lines[1]

        code, output, error = asc_("predict", weights, *files, *options, "--strict")
        assert code == 2 and "last.wav" not in output
        one_line(error, corrupt)


def test_windows(
    weights: Path, tmp_path: Path, asc_: Asc, wav: Wav, caplog: pytest.LogCaptureFixture
) -> None:
    path = wav(tmp_path / "a.wav", seconds=23)
    table, picture = tmp_path / "t.csv", tmp_path / "t.PNG"
    options = ("--window", 10, "--hop", 6, "--timeline", table, "--timeline", picture)
    code, output, error = asc_("predict", weights, path, *options)
    assert (code, error) == (0, "")
    header, *lines = output.splitlines()
    assert header.split("\t") == ["file", "start", "end", "label", "probability"]
    spans = [("0.00", "10.00"), ("6.00", "16.00"), ("12.00", "22.00"), ("13.00", "23.00")]
    assert [tuple(line.split("\t")[1:3]) for line in lines] == spans
    assert len(table.read_text().splitlines()) == 5
    assert picture.read_bytes().startswith(b"\x89PNG")

    found = asc_("predict", weights, path, "--window", 10, "--json")[1].splitlines()
    assert [(json.loads(line)["start"], json.loads(line)["end"]) for line in found] == [
        (0, 10), (5, 15), (10, 20), (13, 23)
    ]  # fmt: skip
    assert asc_("predict", weights, path, "--window", 5, "--hop", 6.5)[0] == 0
    assert "1.5 s between two windows are not heard" in caplog.text
    code, output, error = asc_("predict", weights, path, "--json")
    first = json.loads(found[0])
    del first["start"], first["end"]
    assert json.loads(output) == first
    assert f"{path} is longer than 10 s" in error and "--window 10" in error


def test_folders(weights: Path, folders: Path, asc_: Asc, one_line: OneLine) -> None:
    code, output, _ = asc_("predict", weights, folders / "train", "--recursive")
    assert code == 0 and output.count(".wav") == 4
    code, output, error = asc_("predict", weights, folders / "train")
    assert (code, output) == (2, "")
    one_line(error, folders / "train", "--recursive")
    code, output, _ = asc_("predict", weights, folders / "train" / "*" / "1.wav")
    assert code == 0 and output.count("1.wav") == 2


def test_a_stream_is_predicted_as_it_comes(weights: Path, tmp_path: Path, wav: Wav) -> None:
    """A line is there before the stream goes on; Ctrl-C keeps the timeline."""
    samples = wav(tmp_path / "a.wav", seconds=16).read_bytes()
    content = samples[:40] + b"\xff\xff\xff\xff" + samples[44:]  # a length that nobody knows
    table = tmp_path / "t.csv"
    # A shell has what it starts in the background ignore SIGINT, pytest and its children too.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from asc.__main__ import main; sys.exit(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "predict", weights, "-", "--json", "--timeline", table],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as run:
        assert run.stdin and run.stdout
        for seconds in (10, 15):
            run.stdin.write(content[: 44 + 3 * 44_100 * 10] if seconds == 10 else
                            content[44 + 3 * 44_100 * 10 : 44 + 3 * 44_100 * 15])  # fmt: skip
            run.stdin.flush()
            found = json.loads(run.stdout.readline())
            assert (found["file"], found["start"], found["end"]) == ("-", seconds - 10, seconds)
        run.send_signal(signal.SIGINT)
        assert run.wait() == 130
    assert len(table.read_text().splitlines()) == 3


def test_whoever_reads_the_lines_may_have_enough(weights: Path, tmp_path: Path, wav: Wav) -> None:
    files = " ".join(40 * [str(wav(tmp_path / "a.wav"))])
    run = subprocess.run(
        f"{sys.executable} -m asc predict {weights} {files} | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout == "file\tlabel\tprobability\n"
    assert len(run.stderr.splitlines()) == 1 and "shorter than 10 s" in run.stderr


def test_raw_samples(
    weights: Path, tmp_path: Path, asc_: Asc, wav: Wav, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wav(tmp_path / "a.wav", seconds=11)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes()[44:])))
    raw = ("--rate", 44_100, "--channels", 1, "--sample-format", "s24le")
    code, output, _ = asc_("predict", weights, "-", "--window", 10, "--json", *raw)
    assert code == 0
    expected = asc_("predict", weights, path, "--window", 10, "--json")[1]
    assert output == expected.replace(json.dumps(str(path)), '"-"')


@pytest.fixture
def levelled(tmp_path: Path) -> Path:
    """Weights of a network that expects a level of -60 dB."""
    torch.manual_seed(0)
    model = Cnn6Sep()
    assert model.bn0.running_mean is not None
    model.bn0.running_mean.fill_(-60)
    save_folded(model, tmp_path / "levelled.pt")
    return tmp_path / "levelled.pt"


def test_levels(
    levelled: Path, weights: Path, tmp_path: Path, asc_: Asc, one_line: OneLine
) -> None:
    rng, files = np.random.default_rng(0), []
    for scale in (1e-1, 1e-4, 0):
        files.append(tmp_path / f"{scale}.wav")
        soundfile.write(files[-1], scale * rng.normal(0, 1, 441_000), 44_100, "FLOAT")
    code, output, error = asc_("predict", levelled, *files[:2])
    assert code == 0
    one_line(error, "1 of 2 recordings", "-60.0 dB", files[0])
    for options in (("--window", 10, "--gain", "auto"), ("--gain", "auto")):
        assert asc_("predict", levelled, *files[:2], *options)[0::2] == (0, "")
    assert asc_("predict", levelled, files[0], "--gain", "-50")[2] == ""
    assert asc_("predict", levelled, files[0], "--gain", "-50")[1] != output
    code, _, error = asc_("predict", levelled, files[2], "--gain", "auto", "--window", 10)
    assert code == 0  # silence has no level; it is said by another door
    code, _, error = asc_("predict", weights, files[0], "--gain", "auto")
    assert code == 2
    one_line(error, "--gain auto", "do not tell")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("predict", "w", "a", "--tta", "-1"), "--tta"),
        (("predict", "w", "a", "--tta", "1000000000"), "10000"),
        (("predict", "w", "a", "--seed", "-1"), "--seed"),
        (("predict", "w"), "audio"),
        (("predict", "w", "a", "--device", "abacus"), "--device"),
        (("predict", "w", "a", "--precision", "tf32", "--device", "cpu"), "tf32"),
        (("predict", "w", "a", "--devices", "0"), "--devices"),
        (("predict", "w", "a", "--window", "0"), "--window must be from 0.1"),
        (("predict", "w", "a", "--window", "nan"), "--window must be from 0.1"),
        (("predict", "w", "a", "--hop", "5"), "--hop needs --window"),
        (("predict", "w", "a", "--timeline", "x.csv"), "--timeline needs --window"),
        (("predict", "w", "a", "--timeline", "x.pdf", "--window", "9"), "x.pdf"),
        (("predict", "w", "a", "--timeline", "no/x.csv", "--window", "9"), "no/x.csv"),
        (("predict", "w", *"a" * 21, "--timeline", "x.png", "--window", "9"), "21 recordings"),
        (("predict", "w", "-", "-"), "once"),
        (
            ("predict", "w", "a", "--rate", "1", "--channels", "1", "--sample-format", "u8"),
            "name it, -",
        ),
        (("predict", "w", "-", "--rate", "8000"), "need all of"),
        (("predict", "w", "a", "--gain", "loud"), "a number of dB or auto, not 'loud'"),
        (("predict", "w", "a", "--gain", "nan"), "from -100 to 100 dB"),
        (("predict", "w", "*.wav"), "no such files"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], part: str, rejects: Rejects) -> None:
    rejects(part, *arguments)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no recordings here")
def test_released_weights_name_the_recordings(asc_: Asc) -> None:
    files = sorted((SHARED / "audio").glob("*.wav"))
    code, output, _ = asc_("predict", SHARED / "upstream" / "ce_tta.pth", *files, "--json")
    assert code == 0
    labels = [json.loads(line)["label"] for line in output.splitlines()]
    assert labels == ["metro_station", "street_traffic"]
    assert [SCENES.index(label) for label in labels] == [3, 8]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no recordings here")
def test_a_long_recording_of_both(tmp_path: Path, asc_: Asc) -> None:
    """One scene after the other, as it is and 20 dB too quiet: both are named where they are."""
    parts = []
    for name in ("metro_station-paris", "street_traffic-dcase"):
        samples, rate = soundfile.read(SHARED / "audio" / f"{name}.wav", always_2d=True)
        parts += 3 * [samples[: 10 * rate].mean(1)]
    files = [tmp_path / "loud.flac", tmp_path / "quiet.flac"]
    for file, scale in zip(files, (1, 0.1), strict=True):
        soundfile.write(file, scale * np.concatenate(parts), 44_100, "PCM_24")

    def found(path: Path, gain: object) -> tuple[list[str], list[list[float]]]:
        options = ("--window", 10, "--gain", gain, "--json")
        code, output, _ = asc_("predict", SHARED / "upstream/ce_tta.pth", path, *options)
        assert code == 0
        lines = [json.loads(line) for line in output.splitlines()]
        return [x["label"] for x in lines], [list(x["probabilities"].values()) for x in lines]

    labels, p = found(files[0], 0)
    del labels[5]  # half of it is the one scene, half the other
    assert labels == 5 * ["metro_station"] + 5 * ["street_traffic"]
    # But for the rounding to 24 bits, of which the quiet recording has 20 dB less left.
    np.testing.assert_allclose(found(files[1], 20)[1], p, rtol=0, atol=1e-3)
    loud, quiet = (found(file, "auto")[1] for file in files)
    np.testing.assert_allclose(quiet, loud, rtol=0, atol=1e-3)
    assert np.abs(np.array(found(files[1], 0)[1]) - p).max() > 0.1
