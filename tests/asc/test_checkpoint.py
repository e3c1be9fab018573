import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsep
from asc import checkpoint
from asc.augment import SpecAugment
from asc.checkpoint import load_model, load_trainable, save_folded
from asc.errors import UserError
from asc.model import Cnn6Sep, MelAffine

UPSTREAM = Path(__file__).parents[2].parent / "shared" / "upstream"
needs_upstream = pytest.mark.skipif(not UPSTREAM.is_dir(), reason="no released weights here")
RECORDINGS = ("metro_station-paris", "street_traffic-dcase")


def network(seed: int = 0) -> Cnn6Sep:
    """Random weights and running statistics."""
    torch.manual_seed(seed)
    model = Cnn6Sep()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def upstream_content(model: Cnn6Sep) -> dict[str, Any]:
    """The model as SP4ASC saves it: convolution weights with their axes of length 1."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks."):
            block = int(name.split(".")[1]) + 1
            rest = name.split(".", 2)[2]
            if rest == "conv.pointwise":
                rest, tensor = "ch_conv1.weight", tensor[:, :, None, None]
            elif rest == "conv.time_taps":
                rest, tensor = "sp_conv1.weight", tensor[:, None, :, None]
            elif rest == "conv.freq_taps":
                rest, tensor = "sp_conv2.weight", tensor[:, None, None, :]
            name = f"conv{block}.{rest}"
        state[name] = tensor.clone()
    config = {"specAugment": [128, 2, 16, 2]}
    return {"epoch": 200, "net": state, "optim": {}, "scheduler": {}, "config": config}


def lightning_content(model: Cnn6Sep) -> dict[str, Any]:
    return {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": t.clone() for name, t in model.state_dict().items()},
        "hyper_parameters": {
            "classes": list("abcdefghij"),
            "specaugment": {"time_width": 99, "freq_width": 8, "stripes": 1},
        },
    }


def logmel(seed: int = 1) -> Tensor:
    return torch.randn(2, 1, 32, 256, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "weights.pt")
        return tmp_path / "weights.pt"

    return save


@pytest.mark.parametrize("content", [upstream_content, lightning_content])
def test_both_kinds_of_checkpoint(content: Any, saved: Callable[[Any], Path]) -> None:
    model = network()
    path = saved(content(model))
    loaded = load_model(path)
    assert loaded.is_folded and not loaded.training
    assert torch.equal(loaded(logmel()), model.folded()(logmel()))
    trainable = load_trainable(path)
    assert trainable.training and not trainable.is_folded
    for name, tensor in trainable.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def wrapped(state: dict[str, Tensor], before: str) -> dict[str, Tensor]:
    return {before + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("kind", ["ours", "theirs", "folded", "in their file", "in our file"])
def test_bare_and_wrapped_states(kind: str, before: str, saved: Callable[[Any], Path]) -> None:
    model = network()
    expected = model.folded()
    theirs, ours = upstream_content(model), lightning_content(model)
    content: Any = {
        "ours": wrapped(model.state_dict(), before),
        "theirs": wrapped(theirs["net"], before),
        "folded": wrapped(expected.state_dict(), before),
        "in their file": theirs | {"net": wrapped(theirs["net"], before)},
        "in our file": ours | {"state_dict": wrapped(ours["state_dict"], before)},
    }[kind]
    path = saved(content)
    assert torch.equal(load_model(path)(logmel()), expected(logmel()))
    if kind == "folded":
        with pytest.raises(UserError, match="is folded"):
            load_trainable(path)
    else:
        assert load_trainable(path).training


def test_wrappers_inside_names_and_around_averages(saved: Callable[[Any], Path]) -> None:
    model, expected = network(), network().folded()(logmel())
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    model.blocks[1] = torch.compile(model.blocks[1])  # type: ignore[assignment]
    assert any("1._orig_mod." in name for name in model.state_dict())
    for state in (averaged, model.state_dict()):
        assert torch.equal(load_model(saved(state))(logmel()), expected)
    with pytest.raises(UserError, match=r"more than one network \('fc1\.bias' is there twice\)"):
        load_model(saved({"fc1.bias": torch.ones(128), "module.fc1.bias": torch.ones(128)}))


@pytest.mark.parametrize("default", ["dtype", "device"])
@pytest.mark.parametrize("content", [upstream_content, lightning_content, "folded"])
def test_defaults_of_pytorch_play_no_part(
    content: Any, default: str, saved: Callable[[Any], Path], tmp_path: Path
) -> None:
    if content == "folded":
        save_folded(network(), path := tmp_path / "folded.pt")
    else:
        path = saved(content(network()))
    expected = load_model(path).state_dict()
    try:
        torch.set_default_dtype(torch.float64 if default == "dtype" else torch.float32)
        torch.set_default_device("meta" if default == "device" else "cpu")
        state = load_model(path).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


@pytest.mark.parametrize(
    "masks",
    [[128, 2, 16, 3], [0, 2, 16, 2], [128, 2, 16], "128", [128.0, 2, 16, 2], None, [1, -1, 1, -1]],
)
def test_mask_settings_of_another_form(masks: Any, saved: Callable[[Any], Path]) -> None:
    content = upstream_content(network())
    content["config"]["specAugment"] = masks
    with pytest.raises(
        UserError, match="mask settings of another form: 'specAugment' is "
    ) as error:
        load_model(saved(content))
    assert repr(masks) in str(error.value) and "\n" not in str(error.value)
    if isinstance(masks, list) and len(masks) == 4:
        content = lightning_content(network())
        given = dict(zip(("time_width", "stripes", "freq_width"), masks, strict=False))
        content["hyper_parameters"]["specaugment"] = given
        if masks[1] != masks[3]:
            given["freq_stripes"] = masks[3]
        with pytest.raises(UserError, match="mask settings of another form: 'specaugment' is "):
            load_model(saved(content))


def test_what_travels_with_the_weights(saved: Callable[[Any], Path], tmp_path: Path) -> None:
    loaded = load_model(saved(lightning_content(network())))
    assert loaded.classes == tuple("abcdefghij")
    assert loaded.specaugment == SpecAugment(99, 8, 1)
    save_folded(loaded, tmp_path / "folded.pt")
    again = load_model(tmp_path / "folded.pt")
    assert again.classes == loaded.classes
    assert again.specaugment == loaded.specaugment
    assert load_model(saved(upstream_content(network()))).specaugment == SpecAugment(128, 16, 2)


def test_temperature_and_level_travel_in_folded_files(
    saved: Callable[[Any], Path], tmp_path: Path
) -> None:
    model, path = network().calibrated(1.75), tmp_path / "folded.pt"
    save_folded(model, path)
    loaded = load_model(path)
    assert loaded.temperature == 1.75 and loaded.level == model.level is not None
    assert torch.equal(loaded.fc2.weight, (network().fc2.weight / 1.75).half().float())

    content = torch.load(path, weights_only=True)
    older = {key: content[key] for key in ("format", "classes", "specaugment", "parameters")}
    loaded = load_model(saved(older))
    assert loaded.temperature == 1.0 and loaded.level is None
    for key, value in (
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("temperature", "warm"),
        ("level", float("inf")),
        ("level", [3.0]),
    ):
        with pytest.raises(UserError, match=f"'{key}' is "):
            load_model(saved(content | {key: value}))


def test_folded_file_holds_float16(tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "folded.pt"
    save_folded(model, path)
    parameters = torch.load(path, weights_only=True)["parameters"].values()
    assert {tensor.dtype for tensor in parameters} == {torch.float16}
    assert sum(tensor.numel() for tensor in parameters) == 62_474
    assert sum(tensor.nbytes for tensor in parameters) == 124_948
    assert path.stat().st_size < 128 * 1024  # the challenge's limit, kept by the file as a whole
    loaded = load_model(path)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    expected = {name: t.half().float() for name, t in model.folded().state_dict().items()}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    save_folded(loaded, tmp_path / "again.pt")  # a folded network, and float16 already
    assert (tmp_path / "again.pt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("value", [70_000.0, float("nan")])
def test_float16_overflow_is_an_error_and_writes_nothing(value: float, tmp_path: Path) -> None:
    model = network().folded()
    model.fc1.weight[3, 4] = value
    path = tmp_path / "folded.pt"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match=r"folded\.pt.*fc1\.weight"):
        save_folded(model, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["folded.pt"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folded.pt"
    path.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_folded(network(), path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["folded.pt"]


def test_folded_files_cannot_be_unfolded(tmp_path: Path) -> None:
    save_folded(network(), tmp_path / "folded.pt")
    with pytest.raises(UserError, match=r"folded\.pt: is folded"):
        load_trainable(tmp_path / "folded.pt")
    with pytest.raises(UserError, match="eps"):
        load_model(tmp_path / "folded.pt", eps=0)


def rename(content: dict[str, Any]) -> None:
    content["net"]["conv2.extra"] = content["net"].pop("conv2.bn.weight")


def transpose(content: dict[str, Any]) -> None:
    net = content["net"]
    net["conv1.sp_conv1.weight"] = net["conv1.sp_conv1.weight"].transpose(2, 3)


def poison(content: dict[str, Any]) -> None:
    content["net"]["fc1.weight"][0, 0] = float("nan")


def overflow(content: dict[str, Any]) -> None:
    content["net"]["fc1.weight"] = content["net"]["fc1.weight"].double() * 1e300


def negative_variance(content: dict[str, Any]) -> None:
    content["net"]["conv3.bn.running_var"][5] = -1.0


def no_tensor(content: dict[str, Any]) -> None:
    content["net"]["fc1.bias"] = [0.0] * 128


def no_network(content: dict[str, Any]) -> None:
    content["net"] = 3


def other_keys(content: dict[str, Any]) -> None:
    content["model"] = content.pop("net")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename, r"missing conv2\.bn\.weight; unexpected conv2\.extra"),
        (transpose, r"conv1\.sp_conv1\.weight.*\(64, 1, 1, 3\).*\(64, 1, 3, 1\)"),
        (poison, r"fc1\.weight.*NaN"),
        (overflow, r"fc1\.weight.*infinite"),
        (negative_variance, r"after folding.*blocks\.2.*NaN"),
        (no_tensor, r"fc1\.bias.*list"),
        (no_network, "'net'"),
        (other_keys, "its keys: config, epoch, model and 2 more"),
    ],
)
def test_unfit_contents_are_named(
    damage: Callable[[dict[str, Any]], None], message: str, saved: Callable[[Any], Path]
) -> None:
    content = upstream_content(network())
    damage(content)
    path = saved(content)
    with pytest.raises(UserError, match=message) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_unfit_names_of_classes(saved: Callable[[Any], Path]) -> None:
    content = lightning_content(network())
    content["hyper_parameters"]["classes"] = ["a", "b"]
    with pytest.raises(UserError, match=r"2 classes.*10 outputs"):
        load_model(saved(content))


class Trap:
    def __reduce__(self) -> Any:
        return os.system, ("touch sprung",)


def test_files_that_are_no_checkpoints(saved: Callable[[Any], Path], tmp_path: Path) -> None:
    whole = saved(upstream_content(network())).read_bytes()
    half, text, empty = (tmp_path / name for name in ("half.pt", "text.pt", "empty.pt"))
    half.write_bytes(whole[: len(whole) // 2])
    text.write_text("hello\nworld\n")
    empty.write_bytes(b"")
    for path in (half, text, empty):
        with pytest.raises(UserError, match=rf"{path.name}: is not a PyTorch checkpoint"):
            load_model(path)
    with pytest.raises(UserError, match="holds a list"):
        load_model(saved([1, 2]))
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):  # code is never run
        load_model(saved(Trap()))
    with pytest.raises(UserError, match="is a folder"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"gone\.pt: no such file"):
        load_model(tmp_path / "gone.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (np.float64(0.5), r"numpy\S*\.scalar"),
        (argparse.Namespace(lr=1), r"argparse\.Namespace"),
        (network(), r"asc\.model\.Cnn6Sep"),
        (Trap(), r"\w+\.system"),
    ],
)
def test_files_with_more_than_tensors(
    extra: Any, name: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Says what is in it and how to save it right, and runs nothing of it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    contents = [upstream_content(network()) | {"best": extra}]
    contents += [extra] if isinstance(extra, Cnn6Sep) else []
    for content in contents:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=name) as error:
            load_model(path)
        message = str(error.value)
        assert message.startswith(str(path)) and "torch.save(model.state_dict()" in message
        assert "\n" not in message and "damaged" not in message
    assert os.listdir(tmp_path) == ["weights.pt"]


@pytest.mark.filterwarnings("error")
def test_torchscript(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="TorchScript program"):
        load_model(tmp_path / "weights.pt")


@pytest.mark.parametrize("eps", [-1e-9, float("nan"), float("inf")])
def test_bad_eps(eps: float, saved: Callable[[Any], Path]) -> None:
    with pytest.raises(UserError, match="eps"):
        load_model(saved(upstream_content(network())), eps=eps)


def test_other_numbers_of_classes(tmp_path: Path) -> None:
    save_folded(Cnn6Sep(3), tmp_path / "three.pt")
    assert load_model(tmp_path / "three.pt")(logmel()).shape == (2, 3)


# The released weights on two real recordings.


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    arrays = np.load(UPSTREAM / "golden_ce_tta.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays}


def off(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest value."""
    return ((actual.detach().double() - expected).abs().max() / expected.abs().max()).item()


@needs_upstream
@pytest.mark.parametrize("recording", RECORDINGS)
def test_released_weights(recording: str, golden: dict[str, Tensor]) -> None:
    model = load_model(UPSTREAM / "ce_tta.pth")
    x = golden[f"{recording}/logmel"][None, None]
    logits = model(x)[0]
    assert off(logits, golden[f"{recording}/logits_f64"]) < 1e-4  # measured: 5e-7
    assert model.classes[int(logits.argmax())] in recording
    assert model.level == pytest.approx(-27.6, abs=0.05)  # SPEC, section 8
    unfolded = load_trainable(UPSTREAM / "ce_tta.pth").eval()
    assert off(unfolded(x)[0], golden[f"{recording}/logits_f64"]) < 1e-4

    assert isinstance(model.bn0, MelAffine)
    affine = (model.bn0.scale, model.bn0.shift)
    blocks = [b.inference_parameters() for b in model.blocks if isinstance(b, fastsep.SepConvBlock)]
    for i in range(1, 5):
        means = fastsep.sep_conv2d_stack(x, blocks[:i], affine=affine)[0].double().mean((1, 2))
        assert off(means, golden[f"{recording}/block{i}_mean"]) < 1e-5, i


@needs_upstream
@pytest.mark.parametrize("recording", RECORDINGS)
def test_eps_0_reproduces_the_published_numbers(
    recording: str, golden: dict[str, Tensor], tmp_path: Path
) -> None:
    """Upstream leaves eps out of every batch norm (of BN-mel too, whose variances are all so large
    that no float32 result tells). Float32 rounding: tens of roundings of 6e-8 each on the way."""
    model = load_model(UPSTREAM / "ce_tta.pth", eps=0)
    x = golden[f"{recording}/logmel"][None, None]
    assert off(model(x)[0], golden[f"{recording}/logits_upstream_merged_f32"]) < 5e-6
    assert off(model(x)[0], golden[f"{recording}/logits_f64"]) > 1e-3  # eps matters

    # float16 rounds to the same parameters, so the same tolerance holds; without the rounding the
    # logits are off by 1e-3, and one parameter one float16 step (5e-4) aside would show.
    path = tmp_path / "folded.pt"
    save_folded(model, path)
    halved = golden[f"{recording}/logits_upstream_merged_f16params"]
    assert off(load_model(path)(x)[0], halved) < 5e-6
    assert off(model(x)[0], halved) > 5e-4


def test_the_settings_of_a_run_stay_with_its_weights(tmp_path: Path) -> None:
    content = lightning_content(network())
    assert _saved(tmp_path / "x.ckpt", content).run is None  # older, or of something else
    settings = {"preset": {"name": "fl_tta", "epochs": 3}, "seed": 5, "keep": "last"}
    content["hyper_parameters"] |= settings
    model = _saved(tmp_path / "x.ckpt", content)
    assert model.run == settings
    save_folded(model, tmp_path / "folded.pt")
    assert load_model(tmp_path / "folded.pt").run == settings
    assert load_model(tmp_path / "folded.pt").calibrated(2.0).run == settings


def _saved(path: Path, content: dict[str, Any]) -> Cnn6Sep:
    torch.save(content, path)
    return load_model(path)


def test_module_names_its_format() -> None:
    assert checkpoint.FOLDED_FORMAT == "asc-folded-float16"  # files in the field hold it
