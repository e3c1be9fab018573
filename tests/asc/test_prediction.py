import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from noise import CLIPS, network
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

import asc
from asc import prediction
from asc.augment import SpecAugment
from asc.compute import Precision
from asc.data import LogMelDataset, unlabelled
from asc.errors import UserError
from asc.model import Cnn6, Cnn6Sep
from asc.prediction import (
    Until,
    batch_size,
    clip_logits,
    draw_masks,
    item_names,
    masked_logits,
    probabilities,
)
from fastsep import SepConvStack, use_backend

FakeGpu = Callable[..., Any]  # the fixture of conftest
BACKENDS = ("reference", "triton")
COPY = 6 * 64 * 32 * 256 * 4  # what is counted for a copy of 32 frames to take, bytes


@pytest.fixture(scope="module")
def model() -> Cnn6Sep:
    return network()


def test_without_masks(model: Cnn6Sep) -> None:
    p = probabilities(model, CLIPS)
    assert p.dtype == torch.float64 and p.shape == (5, 4)
    with torch.no_grad():
        logits = model(torch.stack([x for x, _ in CLIPS])).double()
    torch.testing.assert_close(p, logits.softmax(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(clip_logits(model, CLIPS), logits, rtol=1e-5, atol=1e-5)


def test_tta_is_the_mean_of_the_softmax_outputs(model: Cnn6Sep) -> None:
    p = probabilities(model, CLIPS, tta=6, seed=3)
    for index, (x, _) in enumerate(CLIPS):
        (masks,) = draw_masks(model.specaugment, 6, 32, 256, 3, index)
        outputs = [model(x[None], mask[None]).double().softmax(1)[0] for mask in masks]
        torch.testing.assert_close(p[index], torch.stack(outputs).mean(0), rtol=1e-5, atol=1e-7)
    assert (p - probabilities(model, CLIPS)).abs().max() > 1e-3  # the masks do something


class Named(Subset[tuple[Tensor, int]]):
    """Clips with the names of their files."""

    def __init__(self, indices: list[int], names: list[str]) -> None:
        super().__init__(CLIPS, indices)
        self.names = names


def test_masks_depend_on_seed_and_clip_alone(model: Cnn6Sep) -> None:
    spec = SpecAugment()
    for clip, others in ((5, ((1, 6), (2, 5), (5, 1))), ("a.wav", ((1, "b.wav"), (2, "a.wav")))):
        (masks,) = draw_masks(spec, 30, 431, 256, 1, clip)
        torch.manual_seed(99)
        assert torch.equal(masks, *draw_masks(spec, 30, 431, 256, 1, clip))
        for seed, other in others:
            assert not torch.equal(masks, *draw_masks(spec, 30, 431, 256, seed, other))
    # More masks begin with the same ones only by chance, but clips in other company do not change.
    alone = probabilities(model, CLIPS[:2], tta=4, seed=1)
    assert torch.equal(alone, probabilities(model, CLIPS, tta=4, seed=1)[:2])


def test_a_file_has_one_answer_wherever_it_stands(model: Cnn6Sep, tmp_path: Path, wav: Any) -> None:
    """Its masks follow from its name; in all containers of PyTorch, and in another folder."""
    names = [f"{i}.wav" for i in range(5)]
    clips, order = Named([0, 1, 2, 3, 4], names), [3, 0, 4, 1, 2]
    p = probabilities(model, clips, tta=4, seed=1)
    shuffled = Named(order, [names[i] for i in order])
    joined = ConcatDataset([Subset(clips, order[:2]), Subset(clips, order[2:])])
    for other in (shuffled, Subset(clips, order), joined):
        assert torch.equal(probabilities(model, other, tta=4, seed=1), p[order])
    assert item_names(ConcatDataset([clips, Subset(CLIPS, [0])])) is None  # not all have one

    first, second = (wav(tmp_path / folder / "x.wav") for folder in ("one", "other"))
    files = LogMelDataset(unlabelled([first, wav(tmp_path / "y.wav", 900), second]))
    assert files.names == ["x.wav", "y.wav", "x.wav"]
    p = probabilities(model, files, tta=2)
    assert torch.equal(p[0], p[2]) and not torch.equal(p[0], p[1])


def test_no_number_of_masks_is_held_at_once(
    model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], SpecAugment.draw

    def spy(self: SpecAugment, n: int, *args: Any) -> Tensor:
        drawn.append(n)
        return draw(self, n, *args)

    monkeypatch.setattr(SpecAugment, "draw", spy)
    masks = list(draw_masks(SpecAugment(), 600, 32, 256, 0, "x"))
    assert drawn == [256, 256, 88] and torch.cat(masks).unique(dim=0).shape[0] > 590
    drawn.clear()
    assert next(draw_masks(SpecAugment(), 10**12, 32, 256, 0, 0)).shape == (256, 4, 3)
    assert drawn == [256]  # the rest when it is asked for
    monkeypatch.setattr(prediction, "_DRAWN", 3)
    stripes = torch.cat(list(draw_masks(model.specaugment, 7, 32, 256, 0, 0)))
    mean = masked_logits(model, CLIPS[0][0][None], stripes).softmax(1).mean(0)
    torch.testing.assert_close(probabilities(model, CLIPS[:1], tta=7)[0], mean)


def test_memory_limit_does_not_change_the_result(model: Cnn6Sep) -> None:
    expected = probabilities(model, CLIPS, tta=7, seed=1)
    for limit in (1, 3 * COPY, 7 * COPY):  # batches of 1, 3 and 7
        p = probabilities(model, CLIPS, tta=7, seed=1, max_batch_bytes=limit)
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)
    p = probabilities(model, CLIPS, max_batch_bytes=2 * COPY)  # 2 + 2 + 1 clips
    torch.testing.assert_close(p, probabilities(model, CLIPS), rtol=1e-5, atol=1e-7)


def test_batches_and_copies(model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked copies of a clip are one tensor of stride 0, in chunks under the limit."""
    assert [batch_size(32, limit) for limit in (1, COPY, 3 * COPY - 1, 3 * COPY)] == [1, 1, 2, 3]
    seen = []
    forward = Cnn6Sep.forward

    def spy(self: Cnn6Sep, logmel: Tensor, stripes: Tensor | None = None) -> Tensor:
        seen.append((logmel.shape[0], logmel.stride(0)))
        return forward(self, logmel, stripes)

    monkeypatch.setattr(Cnn6Sep, "forward", spy)
    (masks,) = draw_masks(model.specaugment, 7, 32, 256, 0, 0)
    masked_logits(model, CLIPS[0][0][None], masks, engine="batched", max_batch_bytes=3 * COPY)
    assert [n for n, _ in seen] == [3, 3, 1]
    assert all(stride == 0 for n, stride in seen if n > 1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_engines_agree_to_the_last_bit(
    model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch, precision: Precision, threads: int
) -> None:
    """Also where masks are computed in parts, and clips together."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = probabilities(
            model, CLIPS, tta=70, seed=1, engine="batched", precision=precision
        )
        for size in (2**26, 1):
            monkeypatch.setattr(prediction, "_SHARED_BYTES", size)
            p = probabilities(model, CLIPS, tta=70, seed=1, precision=precision)
            assert torch.equal(p, expected)
    finally:
        torch.set_num_threads(before)


class TestUntilThereAreEnough:
    """`tta=Until(...)` stops by the standard error, whatever is computed beside a clip."""

    def test_is_the_mean_of_so_many_masks(self, model: Cnn6Sep) -> None:
        names = [f"{i}.wav" for i in range(5)]
        clips, until = Named([0, 1, 2, 3, 4], names), Until(7e-4, 300)
        p, used = self.masked(model, clips, until)
        assert len(set(used.tolist())) > 1 and used.max() <= 300
        for index, count in enumerate(used.tolist()):
            masks = torch.cat(list(draw_masks(model.specaugment, 300, 32, 256, 3, names[index])))
            outputs = masked_logits(model, CLIPS[index][0][None], masks[:count]).softmax(1)
            torch.testing.assert_close(p[index], outputs.mean(0))
            error = outputs.std(0) / count**0.5
            assert count == 300 or error.max() <= until.tolerance * (1 + 1e-9)
            before = outputs[:-20]
            assert count == 20 or (before.std(0) / len(before) ** 0.5).max() > until.tolerance

    @staticmethod
    def masked(model: Cnn6Sep, items: Any, until: Until) -> tuple[Tensor, Tensor]:
        logmels = torch.stack([logmel for logmel, _ in items])
        names = item_names(items) or range(len(items))
        with torch.inference_mode():
            return prediction.masked(model, logmels, names, until, 3)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_alone_and_beside_others(self, model: Cnn6Sep, threads: int) -> None:
        names = [f"{i}.wav" for i in range(5)]
        p, used = self.masked(model, Named([0, 1, 2, 3, 4], names), Until(1e-3, 100))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for i in range(5):
                one, alone = self.masked(model, Named([i], [names[i]]), Until(1e-3, 100))
                assert torch.equal(one[0], p[i]) and alone[0] == used[i]
        finally:
            torch.set_num_threads(before)

    def test_its_limits(self, model: Cnn6Sep) -> None:
        assert self.masked(model, CLIPS, Until(1e-9, 45))[1].tolist() == [45] * 5
        assert self.masked(model, CLIPS, Until(0.999))[1].tolist() == [20] * 5
        expected = probabilities(model, CLIPS, tta=45, seed=3)
        assert torch.allclose(self.masked(model, CLIPS, Until(1e-9, 45))[0], expected)
        for wrong in ({"tolerance": 0.0}, {"tolerance": float("nan")}, {"most": 0}):
            with pytest.raises(ValueError, match="must be"):
                Until(**wrong)  # type: ignore[arg-type]

    def test_what_is_not_finite_ends_at_once(self, model: Cnn6Sep) -> None:
        poisoned = [(CLIPS[0][0] * torch.nan, 0), CLIPS[1]]
        with pytest.raises(UserError, match="clip 0"):
            probabilities(model, poisoned, tta=Until(1e-9, 40))


@pytest.mark.parametrize("why", ["no kernels", "a hook", "a forward of its own"])
def test_what_cannot_be_shared_stays_within_the_memory_limit(
    model: Cnn6Sep, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    seen, forward = [], SepConvStack.forward

    def spy(self: SepConvStack, x: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(len(x))
        return forward(self, x, *args, **options)

    monkeypatch.setattr(SepConvStack, "forward", spy)
    model = copy.deepcopy(model)
    if why == "a hook":
        model.blocks[1].register_forward_hook(lambda module, args, output: None)
    elif why == "a forward of its own":
        monkeypatch.setattr(model, "forward", model.forward)
    (masks,) = draw_masks(model.specaugment, 7, 32, 256, 0, 0)
    with use_backend("reference") if why == "no kernels" else nullcontext():
        assert not model.shares()
        masked_logits(model, CLIPS[0][0][None], masks, max_batch_bytes=3 * COPY)
    assert seen == [3, 3, 1]


def test_no_clips(model: Cnn6Sep) -> None:
    assert probabilities(model, []).shape == (0, 4)
    assert probabilities(model, [], tta=2).shape == (0, 4)


def test_train_mode_is_refused() -> None:
    for tta in (0, 2):
        with pytest.raises(ValueError, match="train mode"):
            probabilities(Cnn6Sep(4), CLIPS, tta=tta)


@pytest.mark.parametrize("arguments", [{"tta": -1}, {"tta": 2, "seed": -1}])
def test_negative_arguments(model: Cnn6Sep, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        probabilities(model, CLIPS, **arguments)


@pytest.mark.parametrize("tta", [0, 3])
def test_outputs_that_are_not_finite_are_an_error(model: Cnn6Sep, tta: int) -> None:
    clips = [*CLIPS[:3], (torch.full((1, 32, 256), torch.nan), 0)]
    with pytest.raises(UserError, match=r"clip 3.*not finite"):
        probabilities(model, clips, tta=tta)
    named = Named([0, 1], ["a.wav", "b.wav"])
    named.dataset = [clips[0], clips[3]]
    with pytest.raises(UserError, match=r"'b\.wav': .*not finite"):
        probabilities(model, named, tta=tta)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tta", [0, 3])
@pytest.mark.parametrize("precision", get_args(Precision))
def test_evaluation_never_waits_for_the_gpu(
    precision: Precision, tta: int, backend: str, monkeypatch: pytest.MonkeyPatch, fake_gpu: FakeGpu
) -> None:
    monkeypatch.setattr(prediction, "checked", lambda results, _: results)  # waits, in the end
    model = Cnn6Sep(3).folded()
    with fake_gpu(backend) as gpu:
        model.to(gpu.device)
        monkeypatch.setattr(Cnn6Sep, "to", lambda self, device: self)  # fakes can move but once
        clips = [(torch.ones(1, 32, 256), 0) for _ in range(5)]
        gpu.seen.clear()
        results = probabilities(model, clips, tta=tta, device="cuda", precision=precision)
    assert results.device == gpu.device and results.shape == (5, 3)
    assert len(gpu.seen) == 1 + (len(clips) if tta else 0)  # one batch; masks of each clip
    assert not gpu.waits()


def spread_model() -> Cnn6Sep:
    torch.manual_seed(0)
    model = Cnn6Sep(4)
    with torch.no_grad():
        model.fc2.weight *= 20  # outputs of an untrained network hardly differ
        model(torch.stack([x for x, _ in CLIPS]))
    return model.folded()


def test_bf16_evaluation_rounds_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spread_model()
    asked = []
    forward = SepConvStack.forward

    def spy(self: SepConvStack, *args: Any, **options: Any) -> Tensor:
        asked.append(self.compute)
        return forward(self, *args, **options)

    monkeypatch.setattr(SepConvStack, "forward", spy)
    for tta in (0, 3):
        exact, rounded = (
            probabilities(model, CLIPS, tta=tta, precision=p) for p in ("float32", "bf16")
        )
        assert (rounded - exact).abs().max() < 0.02
    assert asked[0] is None and set(asked) == {None, "bf16"}
    model.blocks.compute = "bf16"
    assert torch.equal(clip_logits(model, CLIPS), clip_logits(spread_model(), CLIPS))


@pytest.mark.parametrize("poisoned", [False, True])
@pytest.mark.parametrize("own", [None, "bf16"])
@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_model_is_left_as_it_was(
    precision: Precision, own: str | None, poisoned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the call and, for whoever else computes with it, during it; also when it raises."""
    model = spread_model()
    model.blocks.compute = own
    if poisoned:
        model.fc1.weight[0, 0] = torch.nan
    blocks, state = model.blocks, {name: t.clone() for name, t in model.state_dict().items()}
    during = []

    def spied(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def spy(self: Cnn6Sep, *args: Any) -> Tensor:
            during.append(model.blocks is blocks and blocks.compute == own)
            assert self.fc1.weight is model.fc1.weight  # no copies of what need not move
            return method(self, *args)

        return spy

    for method in (Cnn6Sep.forward, Cnn6Sep.masked):
        monkeypatch.setattr(Cnn6Sep, method.__name__, spied(method))
    for tta in (0, 2):
        with pytest.raises(UserError) if poisoned else nullcontext():
            probabilities(model, CLIPS, tta=tta, precision=precision)
        assert model.blocks is blocks and blocks.compute == own
    assert all(during) and len(during) > 1
    assert not model.training and model.fc1.weight.device.type == "cpu"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, equal_nan=True)


def test_a_model_elsewhere_is_copied_one_in_place_is_not() -> None:
    model = Cnn6Sep(3).folded()
    cpu, elsewhere = torch.device("cpu"), torch.device("meta")
    assert prediction._adapted(model, cpu, "float32") is model
    blocks = prediction._adapted(model, cpu, "bf16").blocks
    assert blocks is not model.blocks and blocks[0] is model.blocks[0]
    moved = prediction._adapted(model, elsewhere, "bf16")
    assert {t.device for t in moved.state_dict().values()} == {elsewhere}
    assert moved.blocks.compute == "bf16"
    moved.blocks.compute = None
    assert prediction._adapted(moved, elsewhere, "float32") is moved
    assert {t.device for t in model.state_dict().values()} == {cpu}


def test_by_default_it_computes_where_the_model_is(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "checked", lambda results, _: results)
    model = Cnn6Sep(3).folded()
    with fake_gpu() as gpu:
        model.to(gpu.device)
        clips = [(torch.ones(1, 32, 256), 0) for _ in range(2)]
        assert probabilities(model, clips).device == gpu.device


def test_the_dense_network_too() -> None:
    model = Cnn6(4).eval()
    p = probabilities(model, CLIPS, precision="bf16")  # which is about separable blocks
    with torch.no_grad():
        logits = model(torch.stack([x for x, _ in CLIPS])).double()
    torch.testing.assert_close(p, logits.softmax(1), rtol=1e-5, atol=1e-7)


def test_public_name() -> None:
    assert asc.probabilities is probabilities
