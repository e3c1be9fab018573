import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from asc.checkpoint import description, load_model, load_trainable
from asc.model import Cnn6Sep
from asc.tensors import is_safetensors, safetensors_content

Refused = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def model() -> Cnn6Sep:
    torch.manual_seed(0)
    return Cnn6Sep(2).calibrated(1.5).folded()


def test_metadata_say_what_the_network_is(model: Cnn6Sep, tmp_path: Path) -> None:
    path = tmp_path / "network"
    described = description(model) | {"front_end": {"sample_rate": 44_100}}
    path.write_bytes(safetensors_content(model.state_dict(), described))
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["class 0", "class 1"]
    assert json.loads(metadata["temperature"]) == 1.5
    assert json.loads(metadata["front_end"]) == {"sample_rate": 44_100}
    loaded = load_model(path)
    assert loaded.temperature == 1.5 and loaded.classes == model.classes


def test_tensors_of_others(tmp_path: Path) -> None:
    """Bare states, as of a trainable network, saved by whatever."""
    torch.manual_seed(0)
    network = Cnn6Sep()
    path = tmp_path / "network.safetensors"
    safetensors.torch.save_file(network.state_dict(), path, {"format": "pt"})
    for name, tensor in load_trainable(path).state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_damage_and_other_files(model: Cnn6Sep, tmp_path: Path, refused: Refused) -> None:
    content = safetensors_content(model.state_dict(), description(model))
    path = tmp_path / "network"
    path.write_bytes(content[:-1000])
    with refused(path, "damaged safetensors"):
        load_model(path)
    path.write_bytes(content.replace(b'"1.5"', b'"1,5"'))
    with refused(path, "damaged safetensors"):
        load_model(path)
    for other in (b"", b"{", b"PK\3\4" + b"{" * 20, content[:100]):
        path.write_bytes(other)
        assert not is_safetensors(path)


def test_without_the_package(
    model: Cnn6Sep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    path = tmp_path / "network"
    path.write_bytes(safetensors_content(model.state_dict(), description(model)))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with refused("'safetensors'", "pip install 'fastsep[export]'"):
        load_model(path)
