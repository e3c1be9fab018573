import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import Calls
from torch import Tensor, nn

import fastsep
from asc.augment import SpecAugment, apply_stripes, mixup
from asc.losses import focal_loss
from asc.model import Cnn6, Cnn6Sep
from fastsep.eager import to_eager
from fastsep.modules import GlobalPool

FakeGpu = Callable[..., Any]  # the fixture of conftest
BACKENDS = ("reference", "triton")


def logmels(n: int, frames: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 15 * torch.randn(n, 1, frames, 256, generator=generator, dtype=torch.float64) - 60


def trained(model: nn.Module) -> nn.Module:
    """Float64, in eval mode, with statistics as after training: each batch norm sees its input."""
    torch.manual_seed(0)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = None  # running statistics are those of the one batch below
    model.train()(logmels(8, seed=9))
    return model.eval()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_folded_network_has_as_many_parameters_and_nothing_else() -> None:
    folded = Cnn6Sep().folded()
    assert sum(p.numel() for p in folded.parameters()) == 62_474
    assert sum(t.numel() for t in folded.state_dict().values()) == 62_474
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_folding_keeps_the_outputs_and_the_original() -> None:
    model = trained(Cnn6Sep())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = model.folded()
    x, stripes = logmels(2), SpecAugment(8, 32).draw(2, 32, 256)
    for masks in (None, stripes):
        # Sums of up to 128 products per layer: rounding far below 1e-12.
        assert_close(folded(x, masks), model(x, masks), 1e-12)
    assert folded.is_folded and not model.is_folded
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    twice = folded.folded()
    assert torch.equal(twice(x), folded(x))


@pytest.mark.parametrize("make", [Cnn6Sep, Cnn6, lambda: Cnn6Sep().folded()])
def test_calibrated_networks_divide_their_logits(make: Callable[[], Cnn6Sep | Cnn6]) -> None:
    model = trained(make()) if make is not Cnn6 else make().double().eval()
    assert isinstance(model, Cnn6Sep | Cnn6)
    assert model.temperature == 1.0
    x = logmels(2)
    before = model(x)
    calibrated = model.calibrated(2.5)
    assert_close(2.5 * calibrated(x), before, 1e-14)
    assert calibrated.temperature == 2.5
    again = calibrated.calibrated(2)
    assert again.temperature == 5.0
    assert_close(5 * again(x), before, 1e-14)
    assert torch.equal(model(x), before) and model.temperature == 1.0
    assert copy.deepcopy(again).temperature == to_eager(again).temperature == 5.0
    if isinstance(again, Cnn6Sep):
        assert again.folded().temperature == 5.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_are_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        Cnn6Sep().calibrated(temperature)


def test_level_is_what_batch_norm_saw_and_stays_when_folded() -> None:
    assert Cnn6Sep().level is None and Cnn6Sep().folded().level is None
    model = trained(Cnn6Sep())
    assert isinstance(model, Cnn6Sep)
    level = model.level
    assert level == pytest.approx(logmels(8, seed=9).mean().item(), abs=1e-9)
    for copied in (model.folded(), model.folded().folded(), model.calibrated(3), copy.copy(model)):
        assert copied.level == level
    assert to_eager(model.folded()).level == level


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_level_after_few_batches(momentum: float | None) -> None:
    """When the running means have hardly left 0."""
    model = Cnn6Sep().train()
    model.bn0.momentum = momentum
    x = logmels(2).float() - 30
    for _ in range(2):
        with torch.no_grad():
            model(x)
        assert model.level == pytest.approx(x.mean().item(), rel=1e-5)


def test_level_leaves_out_bins_that_were_always_silent() -> None:
    model = trained(Cnn6Sep())
    mean = model.bn0.running_mean
    assert isinstance(model, Cnn6Sep) and mean is not None
    expected = mean[:200].double().mean().item()
    mean[200:] = -100
    assert model.level == pytest.approx(expected) == model.folded().level
    mean.fill_(-100)
    assert model.level is None


def test_eps_of_folding() -> None:
    """A channel that hardly varied: eps decides the scale, and eps=0 leaves it out."""
    model = trained(Cnn6Sep())
    block = model.blocks[0]
    assert isinstance(block, fastsep.SepConvBlock) and block.bn is not None
    block.bn.running_var[7] = 1e-10
    kept, gone = (model.folded(eps=eps).blocks[0].conv.time_taps[7] for eps in (None, 0))
    ratio = ((1e-10 + block.bn.eps) / 1e-10) ** 0.5
    torch.testing.assert_close(gone, ratio * kept, rtol=1e-12, atol=0)


def test_bn_mel_is_per_bin_and_masks_come_after_it() -> None:
    model = trained(Cnn6Sep())
    x, stripes = logmels(3), SpecAugment(20, 60).draw(3, 32, 256)
    bn0 = model.bn0
    assert isinstance(bn0, nn.BatchNorm2d)
    std = (bn0.running_var + bn0.eps).sqrt()
    normalised = (x - bn0.running_mean) / std * bn0.weight + bn0.bias
    expected = model.head(model.blocks(apply_stripes(normalised, stripes)))
    assert_close(model(x, stripes), expected, 1e-12)
    assert not torch.allclose(model(x, stripes), model(x))


def test_training_normalises_before_it_masks() -> None:
    model = Cnn6Sep(dropout=0.0).double().train()
    x, stripes = logmels(3), SpecAugment(20, 60).draw(3, 32, 256)
    mean, std = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    normalised = (x - mean) / (std + 1e-5).sqrt()
    expected = model.head(model.blocks(apply_stripes(normalised, stripes)))
    assert_close(model(x, stripes), expected, 1e-12)
    # The masked values have no part in the statistics.
    torch.testing.assert_close(model.bn0.running_mean, 0.1 * mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_a_training_step_is_that_of_pytorchs_layers(masked: bool) -> None:
    """Gradients of all parameters and running statistics, in two steps."""
    torch.manual_seed(3)
    model = Cnn6Sep(dropout=0.0).double().train()
    with torch.no_grad():
        nn.init.uniform_(model.bn0.weight, 0.5, 1.5)  # type: ignore[arg-type]
        nn.init.uniform_(model.bn0.bias, -0.5, 0.5)  # type: ignore[arg-type]
    twin = to_eager(model)
    for seed in range(2):
        x = logmels(3, seed=seed)
        stripes = SpecAugment(20, 60).draw(3, 32, 256) if masked else None
        for m in (model, twin):
            m.zero_grad()
            m(x, stripes).square().sum().backward()
        for got, wanted in zip(model.parameters(), twin.parameters(), strict=True):
            assert got.grad is not None and wanted.grad is not None
            assert_close(got.grad, wanted.grad.view_as(got.grad), 1e-10)
        for a, b in zip(model.buffers(), twin.buffers(), strict=True):
            assert_close(a, b, 1e-12)


def test_bn_mel_and_masks_are_applied_as_the_first_block_loads() -> None:
    """In training too: one operator, which asks for no gradient of the log-mels."""
    if not fastsep.backends()["cpu"].available:
        pytest.skip("no C++ kernels")
    model, x = Cnn6Sep().train(), logmels(2).float()
    stripes = SpecAugment(20, 60).draw(2, 32, 256)
    with Calls() as calls:
        model(x, stripes).sum().backward()
    stack = [name for name in calls.names if "stack" in name]
    assert stack == ["sep_conv2d_bn_stack", "sep_conv2d_bn_stack_backward"]
    assert calls.needs == ([3] * 4, False, True)


def test_log_mels_may_want_gradients() -> None:
    """Which flow through BN-mel's statistics as well."""
    model = Cnn6Sep(dropout=0.0).double().train()
    twin, gradients = to_eager(model), []
    for m in (model, twin):
        x = logmels(2).requires_grad_()
        m(x).square().sum().backward()
        gradients.append(x.grad)
    assert_close(gradients[0], gradients[1], 1e-10)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["frozen", "cumulative", "untracked", "hooked", "replaced"])
def test_bn_mel_of_any_kind_in_training(state: str) -> None:
    model = Cnn6Sep(dropout=0.0).double().train()
    bn0: Any = model.bn0
    seen: list[Tensor] = []
    if state == "frozen":
        bn0.eval()
    elif state == "cumulative":
        bn0.momentum = None
    elif state == "untracked":
        model.bn0 = nn.BatchNorm2d(256, track_running_stats=False).double()
    elif state == "replaced":
        model.bn0 = nn.Sequential(bn0, nn.Tanh())
    twin = to_eager(model)
    if state == "hooked":
        bn0.register_forward_hook(lambda m, x, y: seen.append(y))
    for seed in range(2):
        x = logmels(2, seed=seed)
        assert_close(model(x), twin(x), 1e-10)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert_close(a, b, 1e-12)
    assert len(seen) == 2 * (state == "hooked")


def test_every_parameter_learns() -> None:
    model = Cnn6Sep().train()
    model(logmels(4).float()).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("fold", [False, True])
def test_expanded_input_is_as_good_as_copies(fold: bool) -> None:
    model = trained(Cnn6Sep())
    model = model.folded() if fold else model
    x, stripes = logmels(1), SpecAugment(8, 32).draw(5, 32, 256)
    with torch.no_grad():
        expanded = model(x.expand(5, -1, -1, -1), stripes)
        assert torch.equal(expanded, model(x.repeat(5, 1, 1, 1), stripes))
    assert_close(expanded[3:4], model(x, stripes[3:4]), 1e-12)


@pytest.mark.parametrize("frames", [16, 17, 431])
def test_any_number_of_frames_from_16(frames: int) -> None:
    for model in (Cnn6Sep(7), Cnn6(7)):
        assert model.eval()(torch.zeros(2, 1, frames, 256)).shape == (2, 7)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 431, 128), r"\(N, 1, T, 256\).*\(1, 1, 431, 128\)"),
        ((1, 2, 431, 256), r"\(N, 1, T, 256\)"),
        ((431, 256), r"\(N, 1, T, 256\)"),
        ((1, 1, 15, 256), "at least 16 frames.*15"),
    ],
)
@pytest.mark.parametrize("network", [Cnn6Sep, Cnn6])
def test_bad_shapes_are_named(network: type[nn.Module], shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network()(torch.zeros(shape))


def test_dense_network() -> None:
    model = trained(Cnn6())
    convolutions = 25 * (64 + 64 * 128 + 128 * 128 + 128 * 128)
    norms = 2 * (256 + 64 + 3 * 128)
    mlp = 129 * 128 + 129 * 10
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + mlp
    x, stripes = logmels(2), SpecAugment(8, 32).draw(2, 32, 256)
    assert not torch.allclose(model(x, stripes), model(x))
    x[:, :, 3:9] = 1e9  # under a mask, after which nothing is left of it
    rows = torch.tensor([[[0, 3, 9]]] * 2)
    y = x.clone()
    y[:, :, 3:9] = -60
    assert torch.equal(model(x, rows), model(y, rows))


def test_dropout_only_in_training() -> None:
    model = Cnn6Sep(dropout=0.5)
    x = logmels(4).float()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_what_is_done_to_the_linear_layers_shows() -> None:
    """In eval mode the head is one operator, unless a layer was hooked or replaced."""
    model = Cnn6Sep().eval()
    x = logmels(2).float()
    with torch.inference_mode():
        expected = model(x)
        seen: list[Tensor] = []
        hook = model.fc1.register_forward_hook(lambda module, args, output: seen.append(output))
        torch.testing.assert_close(model(x), expected)
        assert [tuple(output.shape) for output in seen] == [(2, 128)]
        hook.remove()
        model.fc2 = nn.Sequential(model.fc2, nn.Softmax(1))
        torch.testing.assert_close(model(x), expected.softmax(1))
        model.fc2 = nn.Linear(128, 7, bias=False)
        assert model(x).shape == (2, 7)


LAYERS = ["bn0", "blocks.0", "blocks.1.conv", "blocks.3.bn", "dropout", "fc1", "fc2"]


@pytest.mark.parametrize("path", LAYERS)
@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_a_hook_on_any_layer_is_called_in_eval_mode(path: str, register: str) -> None:
    model = trained(Cnn6Sep())
    twin, x = to_eager(model), logmels(2)
    for m in (model, twin):
        m.bn0.weight.grad = None

        def double(_m: nn.Module, before: Any, after: Any) -> Any:
            if isinstance(after, Tensor):
                return 2 * after
            return tuple(g if g is None else 2 * g for g in before)

        getattr(m.get_submodule(path), register)(double)
        m(x).square().sum().backward()
    assert_close(model(x), twin(x), 1e-10)
    assert_close(model.bn0.weight.grad, twin.bn0.weight.grad, 1e-9)  # type: ignore[union-attr, arg-type]


def test_hooks_on_all_modules_are_called_in_eval_mode() -> None:
    model, x = trained(Cnn6Sep()), logmels(2)
    twin = to_eager(model)
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, _x, y: 2 * y if isinstance(m, (nn.BatchNorm2d, nn.Linear)) else None
    )
    try:
        assert_close(model(x), twin(x), 1e-10)
    finally:
        handle.remove()


@pytest.mark.parametrize("norm", ["patched", "of the batch", "none", "without affine", "synced"])
def test_another_first_batch_norm_is_honoured(norm: str) -> None:
    model, x = trained(Cnn6Sep()), logmels(2)
    bn0: Any = model.bn0
    if norm == "patched":
        forward = bn0.forward
        bn0.forward = lambda x: forward(x).tanh()
    elif norm == "of the batch":
        bn0.running_mean = bn0.running_var = None
    elif norm == "none":
        model.bn0 = nn.Identity()
    elif norm == "without affine":
        bn0.weight = bn0.bias = None
    else:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    twin = to_eager(model)
    twin.bn0 = model.bn0
    with torch.no_grad():
        expected = twin.head(twin.blocks(twin.bn0(x.transpose(1, 3)).transpose(1, 3)))  # type: ignore[operator]
        assert_close(model(x), expected, 1e-10)
        if norm == "synced":
            assert_close(model.folded()(x), expected, 1e-10)  # type: ignore[operator]


def test_num_classes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        Cnn6Sep(0)


def test_in_pytorchs_layers_it_computes_the_same() -> None:
    torch.manual_seed(0)
    model = Cnn6Sep().double().folded()
    x = torch.randn(2, 1, 33, 256, dtype=torch.float64)
    stripes = SpecAugment(8, 64).draw(2, 33, 256)
    eager = to_eager(model)
    assert not any(
        isinstance(m, (fastsep.SepConvStack, fastsep.SepConvBlock, GlobalPool))
        for m in eager.modules()
    )
    for masks in (None, stripes):
        torch.testing.assert_close(eager(x, masks), model(x, masks), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", [Cnn6Sep, Cnn6, lambda: Cnn6Sep().folded()])
def test_networks_stay_on_the_gpu(
    make: Callable[[], Cnn6Sep], train: bool, backend: str, fake_gpu: FakeGpu
) -> None:
    model = make().train(train)
    with fake_gpu(backend) as gpu:
        model.to(gpu.device)
        stripes = SpecAugment().draw(4, 32, 256, device=gpu.device)
        gpu.seen.clear()
        for masks in (None, stripes):
            assert model(gpu.empty(4, 1, 32, 256), masks).device == gpu.device
    assert not gpu.seen


def test_autograd_stays_on_the_device() -> None:
    """On "meta", tensors without numbers: the fake GPU has no autograd."""
    model = Cnn6Sep(3).to("meta")
    logmel, targets = torch.empty(4, 1, 32, 256, device="meta"), torch.empty(4, 3, device="meta")
    logmel, targets = mixup(logmel, targets, 0.2)
    stripes = SpecAugment().draw(4, 32, 256, device="meta")
    with fastsep.use_backend("reference"):
        focal_loss(model(logmel, stripes), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, name


class TestMasked:
    """`Cnn6Sep.masked` has the bits of `Cnn6Sep.forward` on the copies."""

    STRIPES = torch.tensor([[[0, 3, 9], [1, 40, 90]], [[0, 0, 50], [1, 0, 1]], [[0, 7, 7]] * 2])

    @pytest.mark.parametrize("folded", [False, True])
    def test_is_forward_on_the_copies(self, folded: bool) -> None:
        torch.manual_seed(0)
        model = Cnn6Sep(4)
        x = 10 * torch.randn(2, 1, 50, 256)
        with torch.no_grad():
            model(x)
            model = model.folded() if folded else model.eval()
            both = torch.stack([self.STRIPES, self.STRIPES.flip(0)])
            logits = model.masked(x, both)
            assert logits.shape == (2, 3, 4)
            for clip, stripes, of_clip in zip(x, both, logits, strict=True):
                assert torch.equal(of_clip, model(clip.expand(3, -1, -1, -1), stripes))
                assert torch.equal(model.masked(clip[None], stripes), of_clip)

    def test_honours_hooks_and_train_mode(self) -> None:
        torch.manual_seed(0)
        model, x = Cnn6Sep(4).eval(), torch.randn(1, 1, 50, 256)
        copies = x.expand(3, -1, -1, -1)
        with torch.no_grad():
            plain = model.masked(x, self.STRIPES)
            for module in (model, model.blocks, model.blocks[1], model.fc1):
                handle = module.register_forward_hook(lambda module, args, output: 2 * output)
                logits = model.masked(x, self.STRIPES)
                assert torch.equal(logits, model(copies, self.STRIPES))
                assert not torch.equal(logits, plain)
                handle.remove()
            model.train()
            model.dropout.p = 0.0
            assert torch.equal(model.masked(x, self.STRIPES), model(copies, self.STRIPES))

    def test_honours_a_head_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Negative(Cnn6Sep):
            def head(self, x: Tensor) -> Tensor:
                return -super().head(x)

        torch.manual_seed(0)
        model, x = Negative(4).eval(), torch.randn(1, 1, 50, 256)
        with torch.no_grad():
            logits = model.masked(x, self.STRIPES)
            assert torch.equal(logits, model(x.expand(3, -1, -1, -1), self.STRIPES))
            monkeypatch.setattr(model, "head", lambda maps: maps.mean((2, 3)))
            assert model.masked(x, self.STRIPES).shape == (3, 128)

    @pytest.mark.parametrize("shape", [(3, 2, 3), (1, 3, 2, 3), (2, 3)])
    def test_stripes_of_other_clips(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"\(2, K, S, 3\)"):
            Cnn6Sep().eval().masked(torch.zeros(2, 1, 16, 256), torch.zeros(shape).long())
