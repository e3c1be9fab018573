import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

import asc.features
import fastsep
from asc.data.audio import load_clip
from asc.features import LogMel
from asc.task import CLIP_SAMPLES, HOP, N_FFT, N_MELS, SAMPLE_RATE

FakeGpu = Callable[..., Any]  # the fixture of conftest

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def slaney_mel(hertz: np.ndarray) -> np.ndarray:
    """Slaney's scale from its definition: linear to 1 kHz, then 27 steps per factor 6.4."""
    linear = hertz * 3 / 200
    log = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / math.log(6.4)
    return np.where(hertz < 1000, linear, log)


def reference_logmel(waveform: np.ndarray) -> np.ndarray:
    """SPEC section 3 in float64 numpy."""
    padded = np.pad(waveform.astype(np.float64), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    grid = np.linspace(0, SAMPLE_RATE / 2, 2**20)
    mels = np.linspace(0, slaney_mel(np.array([SAMPLE_RATE / 2.0]))[0], N_MELS + 2)
    edges = np.interp(mels, slaney_mel(grid), grid)
    freqs = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((freqs - low) / (mid - low), (high - freqs) / (high - mid)).clip(0)
    return 10 * np.log10(np.maximum(power @ (triangles * 2 / (high - low)).T, 1e-10))


def test_matches_a_float64_reference() -> None:
    waveform = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    logmel = LogMel()(waveform)
    assert logmel.shape == (1, 1, 1 + 20_000 // HOP, N_MELS)
    assert logmel.dtype == torch.float32
    # float32 power is good to about 1e-5 relative where noise fills all bins: 4e-5 dB; 1e-2 leaves
    # room for the interpolated edges and thin filters, and a wrong scale or norm is off by > 0.1.
    np.testing.assert_allclose(logmel[0, 0].numpy(), reference_logmel(waveform.numpy()), atol=1e-2)


def by_torchaudio(front_end: LogMel, waveform: Tensor) -> Tensor:
    return front_end.to_db(front_end.mel(waveform)).transpose(1, 2).unsqueeze(1)


def tone(samples: int) -> Tensor:
    """Most bins hold nothing but what rounding leaves of it."""
    return torch.sin(0.3 * torch.arange(samples))[None]


@pytest.mark.parametrize("samples", [1025, 2048, 20_001, CLIP_SAMPLES])
@pytest.mark.parametrize(
    "draw", [lambda n: 0.1 * torch.randn(2, n), tone, lambda n: 1e-6 * torch.randn(1, n)]
)
def test_one_pass_and_torchaudio_are_as_far_from_float64(
    draw: Callable[[int], Tensor], samples: int
) -> None:
    """Two transforms round in their own ways, which shows where a bin holds nothing else."""
    waveform, front_end = draw(samples), LogMel()
    exact = by_torchaudio(LogMel().double(), waveform.double())
    actual, expected = front_end(waveform), by_torchaudio(front_end, waveform)
    errors = [(x - exact).square().mean().sqrt() for x in (actual, expected)]
    assert errors[0] <= 2 * errors[1]
    loud = exact >= exact.max() - 60
    assert (actual - expected)[loud].abs().max() < 1e-3


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The waveforms that fastsep's pass was given."""
    seen: list[Tensor] = []

    def counted(waveform: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(waveform)
        return fastsep.log_mel(waveform, *args, **options)

    monkeypatch.setattr(asc.features, "log_mel", counted)
    return seen


def test_gradients_are_torchaudios(one_pass: list[Tensor]) -> None:
    waveform, front_end = torch.randn(1, 5000).requires_grad_(), LogMel()
    front_end(waveform).sum().backward()
    actual, waveform.grad = waveform.grad, None
    by_torchaudio(front_end, waveform).sum().backward()
    assert actual is not None and waveform.grad is not None
    assert torch.equal(actual, waveform.grad)
    assert not one_pass
    with torch.no_grad():
        front_end(waveform)
    assert one_pass


def test_a_module_of_another_dtype_or_device_is_torchaudios(one_pass: list[Tensor]) -> None:
    waveform = torch.randn(1, 5000)
    assert LogMel().double()(waveform).dtype == torch.float64
    assert not one_pass
    assert LogMel().double().float()(waveform).dtype == torch.float32
    assert one_pass


@pytest.mark.filterwarnings("ignore")  # of the tracer, on what it takes for constant
def test_a_trace_is_good_for_other_lengths() -> None:
    front_end = LogMel()
    traced = torch.jit.trace(front_end, (torch.randn(1, 5000),))
    waveform = torch.randn(3, 300_000)
    torch.testing.assert_close(traced(waveform), front_end(waveform), rtol=0, atol=1e-3)


def test_the_filters_are_torchaudios() -> None:
    front_end = LogMel()
    expected = fastsep.sparse_filters(front_end.mel.mel_scale.fb)
    assert len(expected.weights) == 2030  # of 262 400: two a bin
    for actual, filters in zip(front_end._filters, expected, strict=True):
        assert torch.equal(actual, filters)


def test_clip_has_431_frames_and_silence_is_the_floor() -> None:
    logmel = LogMel()(torch.zeros(2, CLIP_SAMPLES))
    assert logmel.shape == (2, 1, 431, 256)
    assert (logmel == -100).all()


def test_batch_equals_singles() -> None:
    waveform = torch.randn(3, 5000)
    front_end = LogMel()
    singles = torch.cat([front_end(row) for row in waveform])
    torch.testing.assert_close(front_end(waveform), singles, rtol=0, atol=1e-2)


@pytest.mark.parametrize("shape", [(0, 5000), (0, 0)])
def test_no_clip(shape: tuple[int, int]) -> None:
    if shape[1]:
        assert LogMel()(torch.empty(shape)).shape == (0, 1, 5, 256)
    else:
        with pytest.raises(ValueError, match="1025"):
            LogMel()(torch.empty(shape))


def test_a_view_of_any_strides() -> None:
    wide = torch.randn(5000, 2)
    assert torch.equal(LogMel()(wide.T), LogMel()(wide.T.contiguous()))
    assert torch.equal(LogMel()(wide[:, 1]), LogMel()(wide[:, 1].contiguous()))


def test_no_state() -> None:
    front_end = LogMel()
    assert front_end.state_dict() == {}
    assert list(front_end.parameters()) == []
    assert len(list(front_end.buffers())) == 2  # window and filter bank still move with .to()


def test_autocast_does_not_touch_it() -> None:
    waveform, front_end = torch.randn(4096), LogMel()
    expected = front_end(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end(waveform), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_non_finite_samples(bad: float) -> None:
    waveform = torch.zeros(2, 4096)
    waveform[1, 7] = bad
    with pytest.raises(ValueError, match="finite"):
        LogMel()(waveform)


def test_largest_amplitude_stays_finite() -> None:
    square = torch.ones(8192).mul(1e15)
    assert LogMel()(square).isfinite().all()


def test_shape_and_dtype_errors() -> None:
    front_end = LogMel()
    with pytest.raises(ValueError, match="1025"):
        front_end(torch.zeros(1024))
    assert front_end(torch.zeros(1025)).shape == (1, 1, 2, 256)
    with pytest.raises(ValueError, match=r"\(1, 1, 4096\)"):
        front_end(torch.zeros(1, 1, 4096))
    with pytest.raises(TypeError, match="float64"):
        front_end(torch.zeros(4096, dtype=torch.float64))
    with pytest.raises(TypeError, match="ndarray"):
        front_end(np.zeros(4096, dtype=np.float32))


@pytest.mark.parametrize("recording", ["metro_station-paris", "street_traffic-dcase"])
def test_golden_features(recording: str) -> None:
    golden = SHARED / "upstream" / "golden_ce_tta.npz"
    if not golden.is_file():
        pytest.skip("shared folder not there")
    expected = np.load(golden)[f"{recording}/logmel"]
    logmel = LogMel()(load_clip(SHARED / "audio" / f"{recording}.wav"))
    assert np.abs(logmel[0, 0].numpy() - expected).max() < 0.05


def test_features_stay_on_the_gpu(monkeypatch: pytest.MonkeyPatch, fake_gpu: FakeGpu) -> None:
    extract = LogMel()
    with fake_gpu() as gpu:
        extract.to(gpu.device)
        gpu.seen.clear()
        with pytest.raises(DataDependentOutputException):  # the check of the samples: the one wait
            extract(gpu.empty(2, 44_100))
        monkeypatch.setattr(FakeTensor, "__bool__", lambda self: True)
        logmel = extract(gpu.empty(2, 44_100))
    assert logmel.device == gpu.device and logmel.shape == (2, 1, 44, 256)
    assert not gpu.seen


def test_the_default_dtype_plays_no_part() -> None:
    waveform = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    expected = LogMel()(waveform)
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(LogMel()(waveform), expected, rtol=0, atol=1e-2)
    finally:
        torch.set_default_dtype(torch.float32)
