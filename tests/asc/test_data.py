import errno
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asc.data import (
    DEVICES,
    SCENES,
    Clip,
    ClipList,
    LogMels,
    fit_length,
    load_clip,
    open_dataset,
    read_audio,
    read_folders,
    read_tau,
    write_synthetic,
)
from asc.data import logmels as logmels_module
from asc.data.synthetic import synthesize
from asc.errors import UserError
from asc.features import CLIP_SAMPLES, SAMPLE_RATE, LogMel


def tone(hertz: float, seconds: float = 0.5, rate: int = SAMPLE_RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(
    path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, subtype: str = "PCM_24"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def assert_one_line(error: pytest.ExceptionInfo[UserError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


class TestAudio:
    @pytest.mark.parametrize(
        ("subtype", "step"),
        [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 2**-24), ("FLOAT", 2**-24)],
    )
    def test_sample_types(self, tmp_path: Path, subtype: str, step: float) -> None:
        samples = tone(440)
        waveform = read_audio(write(tmp_path / "a.wav", samples, subtype=subtype))
        assert waveform.dtype == torch.float32
        # One step of the format (half by rounding, plus scaling by 2**n or 2**n - 1), or float32's.
        np.testing.assert_allclose(waveform.numpy(), samples, rtol=0, atol=step + 2**-24)

    def test_other_formats(self, tmp_path: Path) -> None:
        path = tmp_path / "a.flac"
        soundfile.write(path, tone(440), SAMPLE_RATE, subtype="PCM_16")
        assert read_audio(path).shape == (SAMPLE_RATE // 2,)

    def test_channels_are_averaged(self, tmp_path: Path) -> None:
        stereo = np.stack([tone(300), 0.5 * tone(700)], axis=1)
        waveform = read_audio(write(tmp_path / "a.wav", stereo, subtype="FLOAT"))
        np.testing.assert_allclose(waveform.numpy(), stereo.mean(1), rtol=0, atol=2**-23)

    @pytest.mark.parametrize("rate", [48_000, 22_050, 8_000])
    def test_resampling(self, tmp_path: Path, rate: int) -> None:
        path = write(tmp_path / "a.wav", tone(1000, rate=rate), rate, "FLOAT")
        waveform = read_audio(path).numpy()
        assert len(waveform) == SAMPLE_RATE // 2
        middle = slice(2000, -2000)  # the filter sees zeros beyond the ends
        # torchaudio's default filter is flat to 1e-3 well below the cut-off.
        np.testing.assert_allclose(waveform[middle], tone(1000)[middle], rtol=0, atol=1e-3)

    def test_hopeless_sample_rate(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.wav", tone(440), 44_101)
        with pytest.raises(UserError) as error:
            read_audio(path)
        assert_one_line(error, path, "44101")

    def test_max_seconds(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.wav", tone(440), subtype="FLOAT")
        whole = read_audio(path)
        assert torch.equal(read_audio(path, max_seconds=0.1), whole[:4410])
        assert torch.equal(read_audio(path, max_seconds=9), whole)

    def test_missing_and_directory(self, tmp_path: Path) -> None:
        for path, what in ((tmp_path / "no.wav", "no such file"), (tmp_path, "directory")):
            with pytest.raises(UserError) as error:
                read_audio(path)
            assert_one_line(error, path, what)

    @pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.raw", "a.txt"])
    @pytest.mark.parametrize("content", [b"", b"not audio at all" * 10, b"RIFF\x00\x01WAVEfmt "])
    def test_corrupt(self, tmp_path: Path, name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_audio(path)
        assert_one_line(error, path)

    def test_empty(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.wav", np.zeros(0))
        with pytest.raises(UserError) as error:
            read_audio(path)
        assert_one_line(error, path, "no audio samples")

    @pytest.mark.parametrize(
        ("bad", "subtype"),
        [(np.nan, "FLOAT"), (-np.inf, "FLOAT"), (1e300, "DOUBLE"), (1e20, "FLOAT")],
    )
    def test_non_finite(self, tmp_path: Path, bad: float, subtype: str) -> None:
        samples = np.zeros((100, 2))
        samples[50, 1] = bad
        path = write(tmp_path / "a.wav", samples, subtype=subtype)
        with pytest.raises(UserError) as error:
            read_audio(path)
        assert_one_line(error, path, "NaN")

    def test_fit_length(self) -> None:
        waveform = torch.arange(5.0)
        assert fit_length(waveform, 3).tolist() == [0, 1, 2]
        assert fit_length(waveform, 5).tolist() == [0, 1, 2, 3, 4]
        assert fit_length(waveform, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
        with pytest.raises(ValueError, match="empty"):
            fit_length(torch.zeros(0))
        with pytest.raises(ValueError, match=r"\(1, 5\)"):
            fit_length(waveform[None])

    @pytest.mark.parametrize("seconds", [0.01, 3.0, 11.0])
    @pytest.mark.parametrize("rate", [44_100, 48_000])
    def test_load_clip_is_always_10_s(self, tmp_path: Path, seconds: float, rate: int) -> None:
        path = write(tmp_path / "a.wav", tone(440, seconds, rate), rate)
        clip = load_clip(path)
        assert clip.shape == (CLIP_SAMPLES,)
        start = min(len(clip), round(min(seconds, 10) * SAMPLE_RATE)) - 100
        assert torch.equal(clip[:start], read_audio(path)[:start])


META = "filename\tscene_label\tidentifier\tsource_label\n"


@pytest.fixture
def tau(tmp_path: Path) -> Path:
    """A tiny TAU folder: two training clips, one evaluation clip."""
    root = tmp_path / "tau"
    rows = [("bus", "bus-oslo-1-1-a"), ("park", "park-oslo-2-2-s1"), ("tram", "tram-oslo-3-3-s4")]
    for _, name in rows:
        write(root / "audio" / f"{name}.wav", tone(440))
    setup = root / "evaluation_setup"
    setup.mkdir()
    files = [f"audio/{name}.wav" for _, name in rows]
    meta = META + "".join(
        f"{file}\t{scene}\toslo-1\t{name.rsplit('-', 1)[1]}\n"
        for file, (scene, name) in zip(files, rows, strict=True)
    )
    (root / "meta.csv").write_text(meta)
    (setup / "fold1_train.csv").write_text(
        f"filename\tscene_label\n{files[0]}\tbus\n{files[1]}\tpark\n"
    )
    (setup / "fold1_evaluate.csv").write_text(f"filename\tscene_label\n{files[2]}\ttram\n")
    (setup / "fold1_test.csv").write_text(f"filename\n{files[2]}\n")
    return root


class TestTau:
    def test_reads_every_split(self, tau: Path) -> None:
        train = read_tau(tau, "train")
        assert train.classes == SCENES
        assert train.labels == (SCENES.index("bus"), SCENES.index("park"))
        assert train.devices == ("a", "s1")
        assert len(train) == 2
        assert train[0] == Clip(tau / "audio" / "bus-oslo-1-1-a.wav", 1, "a")
        assert read_tau(tau, "evaluate").labels == (9,)
        assert list(read_tau(tau, "test")) == [
            Clip(tau / "audio" / "tram-oslo-3-3-s4.wav", None, "s4")
        ]

    def test_device_from_meta_wins_over_the_name(self, tau: Path) -> None:
        meta = (tau / "meta.csv").read_text().replace("oslo-1\ta\n", "oslo-1\td\n")
        (tau / "meta.csv").write_text(meta)
        assert read_tau(tau, "train").devices == ("d", "s1")

    def test_evaluation_set_without_labels_or_meta(self, tmp_path: Path) -> None:
        write(tmp_path / "audio" / "17.wav", tone(440))
        (tmp_path / "evaluation_setup").mkdir()
        (tmp_path / "evaluation_setup" / "fold1_test.csv").write_text("filename\naudio/17.wav\n")
        assert read_tau(tmp_path, "test").clips == (
            Clip(tmp_path / "audio" / "17.wav", None, None),
        )

    def test_byte_order_mark_and_windows_line_ends(self, tau: Path) -> None:
        path = tau / "evaluation_setup" / "fold1_train.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert len(read_tau(tau, "train")) == 2

    @pytest.mark.parametrize(
        ("content", "parts"),
        [
            ("filename\tscene_label\naudio/bus-oslo-1-1-a.wav\tbeach\n", ("line 2", "beach")),
            ("filename\tscene_label\naudio/gone.wav\tbus\n", ("line 2", "gone.wav")),
            (
                "filename\tscene_label\n"
                + "audio/bus-oslo-1-1-a.wav\tbus\naudio/park-oslo-2-2-s1.wav\tpark\n"
                + "audio/bus-oslo-1-1-a.wav\tbus\n",
                ("line 4", "line 2"),
            ),
            ("filename\tscene_label\n", ("no clips",)),
            ("", ("filename",)),
            ("filename,scene_label\na,bus\n", ("filename", "tab")),
            ("filename\naudio/bus-oslo-1-1-a.wav\n", ("scene_label",)),
            ("filename\tscene_label\naudio/bus-oslo-1-1-a.wav\n", ("line 2", "scene_label")),
            ("filename\tscene_label\n\tbus\n", ("line 2", "filename")),
        ],
    )
    def test_bad_list(self, tau: Path, content: str, parts: tuple[str, ...]) -> None:
        path = tau / "evaluation_setup" / "fold1_train.csv"
        path.write_text(content)
        with pytest.raises(UserError) as error:
            read_tau(tau, "train")
        assert_one_line(error, path, *parts)

    def test_binary_list(self, tau: Path) -> None:
        path = tau / "evaluation_setup" / "fold1_train.csv"
        path.write_bytes(b"filename\tscene_label\n\xff\xfe\x00\tbus\n")
        with pytest.raises(UserError) as error:
            read_tau(tau, "train")
        assert_one_line(error, path)

    def test_missing_list_and_wrong_folder(self, tau: Path) -> None:
        (tau / "evaluation_setup" / "fold1_test.csv").unlink()
        with pytest.raises(UserError) as error:
            read_tau(tau, "test")
        assert_one_line(error, "fold1_test.csv", "no such file")
        with pytest.raises(UserError) as error:
            read_tau(tau / "audio", "train")
        assert_one_line(error, tau / "audio", "not a TAU data set")

    def test_meta_without_file_names(self, tau: Path) -> None:
        (tau / "meta.csv").write_text("file\tscene_label\n")
        with pytest.raises(UserError) as error:
            read_tau(tau, "train")
        assert_one_line(error, "meta.csv", "filename")


def class_folders(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        for i in range(count):
            write(root / name / f"{i}.wav", tone(440, 0.1))
    return root


class TestFolders:
    def test_classes_are_sorted(self, tmp_path: Path) -> None:
        clips = read_folders(class_folders(tmp_path, owl=1, cat=2))
        assert clips.classes == ("cat", "owl")
        assert [(clip.path.name, clip.label) for clip in clips] == [
            ("0.wav", 0),
            ("1.wav", 0),
            ("0.wav", 1),
        ]

    def test_ten_scenes_keep_their_order(self, tmp_path: Path) -> None:
        clips = read_folders(class_folders(tmp_path, **dict.fromkeys(reversed(SCENES), 1)))
        assert clips.classes == SCENES

    def test_given_classes_may_lack_folders(self, tmp_path: Path) -> None:
        clips = read_folders(class_folders(tmp_path, park=1, tram=1), SCENES)
        assert clips.classes == SCENES
        assert clips.labels == (4, 9)
        with pytest.raises(UserError) as error:
            read_folders(tmp_path, ("park", "bus"))
        assert_one_line(error, tmp_path / "tram", "park, bus")

    def test_other_files_are_skipped(self, tmp_path: Path) -> None:
        class_folders(tmp_path, cat=1)
        (tmp_path / "cat" / "notes.txt").write_text("x")
        (tmp_path / "cat" / "._0.wav").write_text("x")
        (tmp_path / ".git").mkdir()
        write(tmp_path / "cat" / "cat-oslo-1-2-s5.WAV", tone(440))
        assert read_folders(tmp_path).devices == (None, "s5")

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(UserError) as error:
            read_folders(tmp_path / "no")
        assert_one_line(error, tmp_path / "no", "no such folder")
        with pytest.raises(UserError) as error:
            read_folders(tmp_path)
        assert_one_line(error, tmp_path, "no subfolders")
        (tmp_path / "cat").mkdir()
        with pytest.raises(UserError) as error:
            read_folders(tmp_path)
        assert_one_line(error, tmp_path / "cat", "no audio")


class TestOpenDataset:
    def test_tau(self, tau: Path) -> None:
        assert open_dataset(tau, "train") == read_tau(tau, "train")
        assert open_dataset(str(tau), "test", SCENES) == read_tau(tau, "test")
        with pytest.raises(UserError) as error:
            open_dataset(tau, "train", ("cat", "dog"))
        assert_one_line(error, tau)

    def test_train_and_evaluate_folders(self, tmp_path: Path) -> None:
        class_folders(tmp_path / "train", cat=2, dog=1, owl=1)
        class_folders(tmp_path / "evaluate", dog=1)
        assert open_dataset(tmp_path, "train").labels == (0, 0, 1, 2)
        evaluate = open_dataset(tmp_path, "evaluate")
        assert evaluate.classes == ("cat", "dog", "owl")
        assert evaluate.labels == (1,)
        class_folders(tmp_path / "evaluate", emu=1)
        with pytest.raises(UserError) as error:
            open_dataset(tmp_path, "evaluate")
        assert_one_line(error, tmp_path / "evaluate" / "emu")

    def test_plain_folders_are_split_80_20(self, tmp_path: Path) -> None:
        class_folders(tmp_path, cat=20, dog=5, owl=2)
        train, evaluate = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "evaluate")
        assert Counter(evaluate.labels) == {0: 4, 1: 1, 2: 1}
        assert Counter(train.labels) == {0: 16, 1: 4, 2: 1}
        assert not set(train) & set(evaluate)
        assert train.classes == evaluate.classes == ("cat", "dog", "owl")
        # Pinned: another machine or release must not mix the two.
        held_out = [clip.path.name for clip in evaluate if clip.label == 1]
        assert held_out == ["0.wav"]
        moved = tmp_path.with_name("moved")
        shutil.move(tmp_path, moved)
        assert [c.path.name for c in open_dataset(moved, "evaluate")] == [
            c.path.name for c in evaluate
        ]

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(UserError) as error:
            open_dataset(tmp_path / "no", "train")
        assert_one_line(error, tmp_path / "no")
        with pytest.raises(UserError) as error:
            open_dataset(tmp_path, "train")
        assert_one_line(error, tmp_path, "evaluation_setup", "train/", "folder per class")
        class_folders(tmp_path, cat=1)
        with pytest.raises(UserError) as error:
            open_dataset(tmp_path, "train")
        assert_one_line(error, tmp_path / "cat", "single")
        with pytest.raises(UserError) as error:
            open_dataset(tmp_path, "test")
        assert_one_line(error, tmp_path, "test split")
        with pytest.raises(UserError) as error:
            open_dataset(tmp_path, "valid")  # type: ignore[arg-type]
        assert_one_line(error, "valid")
        class_folders(tmp_path, train=1)
        with pytest.raises(UserError) as error:
            open_dataset(tmp_path, "train")
        assert_one_line(error, tmp_path / "evaluate")


@pytest.fixture
def clips(tmp_path: Path) -> ClipList:
    folder = tmp_path / "audio"
    paths = [write(folder / f"{hertz}.wav", tone(hertz)) for hertz in (300, 2000)]
    return ClipList(("low", "high"), (Clip(paths[0], 0, None), Clip(paths[1], None, None)))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The clips whose log-mels were computed, in order."""
    paths: list[Path] = []

    def load_and_note(path: Path) -> torch.Tensor:
        paths.append(path)
        return load_clip(path)

    monkeypatch.setattr(logmels_module, "load_clip", load_and_note)
    return paths


class TestLogMels:
    def test_items(self, tmp_path: Path, clips: ClipList) -> None:
        expected = LogMel()(load_clip(clips[1].path))[0]
        for cache in (None, tmp_path / "cache"):
            logmels = LogMels(clips, cache)
            assert len(logmels) == 2
            logmel, label = logmels[1]
            assert logmel.shape == (1, 431, 256)
            assert torch.equal(logmel, expected)
            assert label == -1
            assert logmels[0][1] == 0
            logmel.zero_()  # the caller's own copy
            assert torch.equal(logmels[1][0], expected)

    def test_cached_once(self, tmp_path: Path, clips: ClipList, computed: list[Path]) -> None:
        first = LogMels(clips, tmp_path / "cache")
        second = LogMels(clips, tmp_path / "cache")
        assert len(computed) == 2
        assert torch.equal(first[0][0], second[0][0])
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_changed_audio_is_computed_again(
        self, tmp_path: Path, clips: ClipList, computed: list[Path]
    ) -> None:
        cache = tmp_path / "cache"
        before = LogMels(clips, cache)[0][0]
        write(clips[0].path, tone(5000))  # same name, same size
        os.utime(clips[0].path, ns=(0, clips[0].path.stat().st_mtime_ns + 1))
        after = LogMels(clips, cache)[0][0]
        assert len(computed) == 4
        assert not torch.equal(before, after)
        assert len(list(cache.iterdir())) == 1  # the stale one is gone

    def test_changed_settings(
        self,
        tmp_path: Path,
        clips: ClipList,
        computed: list[Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        LogMels(clips, tmp_path / "cache")
        monkeypatch.setattr(logmels_module, "_SETTINGS", ("other",))
        LogMels(clips, tmp_path / "cache")
        assert len(computed) == 4

    def test_other_lists_have_their_own_cache(
        self, tmp_path: Path, clips: ClipList, computed: list[Path]
    ) -> None:
        reversed_clips = ClipList(clips.classes, clips.clips[::-1])
        LogMels(clips, tmp_path / "cache")
        LogMels(reversed_clips, tmp_path / "cache")
        LogMels(clips, tmp_path / "cache")
        assert len(computed) == 4
        assert len(list((tmp_path / "cache").iterdir())) == 2

    @pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "header", "shape"])
    def test_damaged_cache(
        self, tmp_path: Path, clips: ClipList, computed: list[Path], damage: str
    ) -> None:
        expected = LogMels(clips, tmp_path / "cache")[1][0]
        (path,) = (tmp_path / "cache").iterdir()
        content = path.read_bytes()
        path.write_bytes(
            {
                "empty": b"",
                "truncated": content[:-4],
                "garbage": b"garbage" * 100,
                "header": content[:20] + b"(" * 20 + content[40:],
                "shape": content.replace(b"(2, 431, 256)", b"(1, 431, 256)"),
            }[damage]
        )
        assert torch.equal(LogMels(clips, tmp_path / "cache")[1][0], expected)
        assert len(computed) == 4

    def test_bad_clip_leaves_nothing(self, tmp_path: Path, clips: ClipList) -> None:
        clips[1].path.write_bytes(b"not audio")
        with pytest.raises(UserError) as error:
            LogMels(clips, tmp_path / "cache")
        assert_one_line(error, clips[1].path)
        assert list((tmp_path / "cache").iterdir()) == []
        clips[1].path.unlink()
        with pytest.raises(UserError) as error:
            LogMels(clips, tmp_path / "cache")
        assert_one_line(error, clips[1].path)

    def test_cache_that_cannot_be_written(self, tmp_path: Path, clips: ClipList) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("x")
        with pytest.raises(UserError) as error:
            LogMels(clips, blocked)
        assert_one_line(error, blocked)
        assert blocked.read_text() == "x"

    def test_full_disk_leaves_nothing(
        self, tmp_path: Path, clips: ClipList, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full_disk(*_: object) -> Iterator[np.ndarray]:
            yield np.zeros((431, 256), dtype=np.float32)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(logmels_module, "_compute", full_disk)
        with pytest.raises(UserError) as error:
            LogMels(clips, tmp_path / "cache")
        assert_one_line(error, tmp_path / "cache", "No space left")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_pickle_carries_the_path_not_the_data(self, tmp_path: Path, clips: ClipList) -> None:
        logmels = LogMels(clips, tmp_path / "cache")
        pickled = pickle.dumps(logmels)
        assert len(pickled) < 10_000
        assert torch.equal(pickle.loads(pickled)[1][0], logmels[1][0])
        in_memory = pickle.loads(pickle.dumps(LogMels(clips, None)))
        assert torch.equal(in_memory[1][0], logmels[1][0])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "new" / "scenes"
    write_synthetic(root, clips_per_scene=4, seconds=0.3, seed=1)
    return root


class TestSynthetic:
    def test_layout(self, synthetic: Path) -> None:
        train, evaluate = open_dataset(synthetic, "train"), open_dataset(synthetic, "evaluate")
        assert Counter(train.labels) == dict.fromkeys(range(10), 3)
        assert Counter(evaluate.labels) == dict.fromkeys(range(10), 1)
        assert set(train.devices) == set(DEVICES[:6])
        assert set(evaluate.devices) == set(DEVICES)
        assert not {place(clip) for clip in train} & {place(clip) for clip in evaluate}
        test = open_dataset(synthetic, "test")
        assert [clip.path for clip in test] == [clip.path for clip in evaluate]
        assert "SYNTHETIC" in (synthetic / "README.txt").read_text()
        for clip in train:
            scene, *_, device = clip.path.stem.split("-")
            assert clip.label is not None
            assert (scene, device) == (SCENES[clip.label], clip.device)

    def test_audio_format(self, synthetic: Path) -> None:
        for clip in open_dataset(synthetic, "evaluate"):
            info = soundfile.info(clip.path)
            assert (info.samplerate, info.channels, info.frames) == (44_100, 1, 13_230)
            assert (info.format, info.subtype) == ("WAV", "PCM_24")
            waveform = read_audio(clip.path)
            assert 1e-3 < waveform.square().mean().sqrt() < 0.3  # -60 to -10 dB
            assert waveform.abs().max() < 1

    def test_deterministic_in_the_seed(self, synthetic: Path, tmp_path: Path) -> None:
        write_synthetic(tmp_path / "same", clips_per_scene=4, seconds=0.3, seed=1)
        write_synthetic(tmp_path / "other", clips_per_scene=4, seconds=0.3, seed=2)
        files = sorted(p.relative_to(synthetic) for p in synthetic.rglob("*") if p.is_file())
        same = sorted(p.relative_to(tmp_path / "same") for p in (tmp_path / "same").rglob("*.*"))
        assert files == same
        assert all(
            (synthetic / f).read_bytes() == (tmp_path / "same" / f).read_bytes() for f in files
        )
        other = {p.read_bytes() for p in (tmp_path / "other" / "audio").iterdir()}
        assert not other & {p.read_bytes() for p in (synthetic / "audio").iterdir()}

    def test_devices_sound_different(self) -> None:
        def timbre(device: str) -> torch.Tensor:
            audio = torch.from_numpy(synthesize("park", device, (0, 0, 0), 44_100))
            return LogMel()(audio).mean(dim=(0, 1, 2))

        timbres = [timbre(device) for device in DEVICES]
        for i, one in enumerate(timbres):
            for other in timbres[:i]:
                assert (one - other).std() > 1  # dB, of the same clip

    def test_refuses_to_overwrite(self, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "precious").write_text("x")
        (tmp_path / "file").write_text("x")
        for name in ("full", "file"):
            with pytest.raises(UserError) as error:
                write_synthetic(tmp_path / name)
            assert_one_line(error, tmp_path / name)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
        assert (tmp_path / "full" / "precious").read_text() == "x"

    def test_fills_an_empty_folder(self, tmp_path: Path) -> None:
        write_synthetic(tmp_path, clips_per_scene=2, seconds=0.1)
        assert len(open_dataset(tmp_path, "train")) == 10
        assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))

    def test_failure_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full_disk(*_: object, **__: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(soundfile, "write", full_disk)
        with pytest.raises(UserError) as error:
            write_synthetic(tmp_path / "new", clips_per_scene=2, seconds=0.1)
        assert_one_line(error, tmp_path / "new", "no space")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            ({"clips_per_scene": 1}, "clips per scene"),
            ({"seconds": 0.0}, "seconds"),
            ({"seconds": float("nan")}, "seconds"),
            ({"seconds": float("inf")}, "seconds"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_bad_arguments(self, tmp_path: Path, arguments: dict[str, int], word: str) -> None:
        with pytest.raises(UserError) as error:
            write_synthetic(tmp_path / "new", **arguments)
        assert_one_line(error, word)
        assert list(tmp_path.iterdir()) == []


def place(clip: Clip) -> str:
    return clip.path.stem.split("-")[2]
