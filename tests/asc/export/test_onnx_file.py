import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from asc.export import onnx_file
from asc.features import LogMel
from asc.model import Cnn6Sep

Run = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def contents(model: Cnn6Sep) -> list[bytes]:
    """Without and with the front end."""
    return [onnx_file.content(model, {"classes": model.classes}, front) for front in (False, True)]


@pytest.fixture(scope="module")
def runs(contents: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    opened = []
    for content in contents:
        path.write_bytes(content)
        opened.append(onnx_file.opened(path))
    return opened


def assert_close(actual: Tensor, expected: Tensor) -> None:
    # float32 sums of up to 2048 terms in another order, each within 1e-7 of its largest terms
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(1, 431), (3, 47), (2, 16), (1, 17), (1, 33)])
def test_log_mels_of_any_number_and_length(
    shape: tuple[int, int], model: Cnn6Sep, runs: list[Run]
) -> None:
    clips, frames = shape
    generator = torch.Generator().manual_seed(frames)
    x = 15 * torch.randn(clips, 1, frames, 256, generator=generator) - 30
    assert_close(runs[0](x), model(x))


@pytest.mark.parametrize("shape", [(2, 44_100), (1, 15_360), (1, 16 * 1024 - 1), (3, 20_007)])
@pytest.mark.parametrize("signal", ["noise", "tone", "silence"])
def test_samples_of_any_number_and_length(
    signal: str, shape: tuple[int, int], model: Cnn6Sep, runs: list[Run]
) -> None:
    clips, samples = shape
    generator = torch.Generator().manual_seed(samples)
    x = 0.01 * torch.randn(clips, samples, generator=generator)
    if signal == "tone":
        x += (2 * torch.pi * 1000 / 44_100 * torch.arange(samples, dtype=torch.float64)).sin()
    if signal == "silence":
        x.zero_()
    assert_close(runs[1](x), model(LogMel()(x)))


def test_every_bin_counts_once() -> None:
    """Power is at (k1, k2) for bin k1 + 32 k2, of which those above 1024 mirror those below."""
    filters = melscale_fbanks(1025, 0.0, 22_050.0, 256, 44_100, "slaney", "slaney")
    found = torch.zeros(1025, 256)
    for row, weights in enumerate(torch.from_numpy(onnx_file._filters(17))):
        bin_ = row // 64 + 32 * (row % 64)
        found[min(bin_, 2048 - bin_)] += weights
    assert torch.equal(found, filters.float())


def test_what_the_file_says_of_itself(contents: list[bytes]) -> None:
    for content, name in zip(contents, ("logmel", "samples"), strict=True):
        loaded = onnx.load_from_string(content)
        onnx.checker.check_model(loaded, full_check=True)
        assert [opset.version for opset in loaded.opset_import] == [18]
        (given,), (output,) = loaded.graph.input, loaded.graph.output
        sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
        assert (given.name, output.name) == (name, "logits")
        assert sizes == (["clips", 1, "frames", 256] if name == "logmel" else ["clips", "samples"])
        (held,) = loaded.metadata_props
        assert (held.key, json.loads(held.value)) == ("classes", ["forest", "<b>", "Straße"])
        assert {node.op_type for node in loaded.graph.node}.isdisjoint(
            {"STFT", "DFT", "MelWeightMatrix"}
        )
    assert len(contents[0]) < 300_000 and len(contents[1]) < 1_500_000


def test_released_weights_on_recordings(
    released: Cnn6Sep, recordings: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "released.onnx"
    path.write_bytes(onnx_file.content(released, {}, front_end=True))
    logits, expected = onnx_file.opened(path)(recordings), released(LogMel()(recordings))
    assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()  # measured: 6e-6
