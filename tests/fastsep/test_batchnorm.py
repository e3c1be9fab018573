"""Batch norm folded on the fly: whatever changes the weights, the next call sees it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import EXACT, random, trained
from torch import Tensor, nn

from fastsep import SepConvBlock, reference
from fastsep.batchnorm import (
    FoldCache,
    batch_norm_affine,
    fold,
    is_foldable,
    is_plain,
    per_bin_affine,
)
from fastsep.eager import to_eager


def batch_norm(**options: Any) -> nn.BatchNorm2d:
    return trained(nn.BatchNorm2d(5, **options)).eval()


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.3}], ids=str)
def test_the_affine_is_the_batch_norm(options: dict[str, Any]) -> None:
    bn, x = batch_norm(**options), random(2, 5, 4, 3)
    scale, shift = batch_norm_affine(bn)
    torch.testing.assert_close(scale[:, None, None] * x + shift[:, None, None], bn(x), **EXACT)
    wider, _ = batch_norm_affine(bn, eps=0.5)
    bn.eps = 0.5
    torch.testing.assert_close(wider, batch_norm_affine(bn)[0], rtol=0, atol=0)


def test_the_affine_is_computed_in_float64() -> None:
    bn = batch_norm()
    exact, rounded = batch_norm_affine(bn), batch_norm_affine(bn.float())
    assert all(t.dtype == torch.float64 for t in rounded)
    torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=1e-6)


BIN_NORMS: dict[str, Callable[[], nn.BatchNorm2d]] = {
    "usual": lambda: nn.BatchNorm2d(6),
    "cumulative": lambda: nn.BatchNorm2d(6, momentum=None),
    "without affine": lambda: nn.BatchNorm2d(6, affine=False, eps=0.1),
    "without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "without statistics, in eval mode": lambda: nn.BatchNorm2d(6, track_running_stats=False).eval(),
}


@pytest.mark.parametrize("clips", [0, 1, 3])
@pytest.mark.parametrize("make", BIN_NORMS.values(), ids=BIN_NORMS)
def test_a_batch_norm_over_bins_is_an_affine(
    make: Callable[[], nn.BatchNorm2d], clips: int
) -> None:
    """Differentiable in all that the batch norm is, and in the input through its statistics too."""
    bn, twin = trained(make()), trained(make())
    for module in (bn, twin):
        module.train(make().training)
    for seed in range(2):
        x, y = (random(clips, 2, 5, 6, seed=seed).mul(3).add(7).requires_grad_() for _ in range(2))
        scale, shift = per_bin_affine(bn, x)
        got, wanted = x * scale + shift, twin(y.transpose(1, 3)).transpose(1, 3)
        torch.testing.assert_close(got, wanted, **EXACT)
        grad = random(*got.shape, seed=5)
        for a, b in zip(
            torch.autograd.grad(got, [x, *bn.parameters()], grad),
            torch.autograd.grad(wanted, [y, *twin.parameters()], grad),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(bn.state_dict(), twin.state_dict(), **EXACT)


BINS = torch.ops.fastsep.bin_statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(3, 2, 19, 37), (1, 1, 1, 5), (2, 1, 50, 1), (0, 1, 4, 6), (2, 3, 4, 0)]
)
def test_statistics_of_bins(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """In float64 throughout, so to the rounding of a sum of so many numbers, and of squares."""
    x = (random(*shape) + 100 * random(1, 1, 1, shape[3], seed=1)).to(dtype)
    for same in (x, x.contiguous(memory_format=torch.channels_last), x.flip(3).flip(3)):
        mean, var = BINS(same)
        wanted, values = reference.bin_statistics(x.double()), x.double().flatten(0, 2)
        eps, size = 2.3e-16 * (len(values) + 4), values.abs().amax(0) if len(values) else 0
        assert ((mean - wanted[0]).abs() <= eps * size).all()
        assert ((var - wanted[1]).abs() <= eps * (values - values[:1]).square().sum(0)).all()
        assert torch.equal(torch.stack([mean, var]), BINS(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_statistics_of_what_is_not_finite(isa: str, bad: float) -> None:
    x = random(2, 1, 9, 20).float()
    x[1, 0, 3, 4] = bad
    finite = BINS(x).isfinite().all(0)
    assert not finite[4] and finite.sum() == 19


def test_statistics_of_bins_for_any_number_of_threads(
    isa: str, threads: Callable[[int], None]
) -> None:
    x, results = random(4, 1, 45, 38).float(), []
    for n in (1, 2, 3):
        threads(n)
        results.append(BINS(x))
    assert all(torch.equal(other, results[0]) for other in results[1:])


@pytest.mark.parametrize("requires_grad", [True, False])
def test_opcheck(cpu_kernels: None, requires_grad: bool) -> None:
    x = random(2, 1, 5, 7).requires_grad_(requires_grad)
    torch.library.opcheck(BINS.default, (x,))


def test_one_value_per_bin_is_pytorchs_error() -> None:
    bn, x = nn.BatchNorm2d(6), torch.ones(1, 1, 1, 6)
    errors = []
    for call in (lambda: bn(x.transpose(1, 3)), lambda: per_bin_affine(bn, x)):
        with pytest.raises(ValueError, match="more than 1 value per channel") as raised:
            call()
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("offset", [1000, -1000])
def test_statistics_of_bins_far_from_zero(offset: float) -> None:
    """Float32 with a mean of 1000 and a deviation of 1, and a first frame unlike the others."""
    x = random(4, 1, 500, 7).float() + offset
    x[0, 0, 0] = 0
    bn = nn.BatchNorm2d(7, momentum=1.0)
    scale, shift = per_bin_affine(bn, x)
    var, mean = torch.var_mean(x.double(), dim=(0, 1, 2))
    eps = torch.finfo(torch.float32).eps
    # Roundings of 2000 sums of squares cancel as those of a random walk.
    torch.testing.assert_close(bn.running_var.double(), var, rtol=16 * eps, atol=0)
    torch.testing.assert_close(bn.running_mean.double(), mean, rtol=eps, atol=0)
    exact = (torch.var(x.double(), dim=(0, 1, 2), correction=0) + bn.eps).rsqrt()
    torch.testing.assert_close(scale.double(), exact, rtol=16 * eps, atol=0)
    torch.testing.assert_close(shift.double(), -mean * exact, rtol=16 * eps, atol=0)


def test_a_constant_bin_has_no_variance() -> None:
    bn, x = nn.BatchNorm2d(3, momentum=1.0), torch.full((2, 1, 50, 3), 0.1)
    scale, _ = per_bin_affine(bn, x)
    assert bn.running_var.min() >= 0 and bn.running_var.max() < 1e-15
    torch.testing.assert_close(scale, torch.full((3,), bn.eps**-0.5))


def test_which_batch_norms_are_plain() -> None:
    class Louder(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Named(nn.BatchNorm2d):
        pass

    bn, synced = nn.BatchNorm2d(5), nn.SyncBatchNorm(5)
    assert is_plain(bn) and is_plain(bn.eval()) and is_plain(Named(5))
    assert is_plain(synced.eval()) and not is_plain(synced.train())
    for other in (Louder(5), nn.BatchNorm1d(5), nn.GroupNorm(1, 5), nn.Identity()):
        assert not is_plain(other)
    handle = bn.register_forward_hook(lambda *_: None)
    assert not is_plain(bn)
    handle.remove()
    assert is_plain(bn)


def test_folded_taps_are_the_taps_and_the_batch_norm() -> None:
    bn, time, freq = batch_norm(), random(5, 3), random(5, 3, seed=1)
    a, b, bias = fold(bn, time, freq)
    scale, shift = batch_norm_affine(bn)
    torch.testing.assert_close((a / time, b / freq), 2 * (scale[:, None].expand(5, 3),), **EXACT)
    assert torch.equal(bias, shift)
    assert all(t.dtype == torch.float32 for t in fold(bn, time.float(), freq.float()))


def test_a_batch_norm_without_statistics_has_no_affine() -> None:
    with pytest.raises(ValueError, match="no running statistics"):
        batch_norm_affine(nn.BatchNorm2d(5, track_running_stats=False))


def test_statistics_of_the_batch_are_not_folded() -> None:
    taps, cache = (random(5, 3), random(5, 3)), FoldCache()
    assert cache(nn.BatchNorm2d(5, track_running_stats=False).eval(), *taps) is None
    bn = batch_norm()
    assert cache(bn, *taps) is not None
    assert cache(bn.train(), *taps) is None


def test_a_bias_before_the_batch_norm_is_folded_too() -> None:
    bn, bias = batch_norm(), random(5, seed=2)
    scale, shift = batch_norm_affine(bn)
    folded = fold(bn, random(5, 3), random(5, 3), bias)
    torch.testing.assert_close(folded[2], scale * bias + shift, **EXACT)


def test_what_is_foldable() -> None:
    class Other(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    assert is_foldable(batch_norm()) and is_foldable(nn.SyncBatchNorm(5).eval())
    hooked = batch_norm()
    hooked.register_forward_hook(lambda *_: None)
    others = [Other(5).eval(), hooked, batch_norm().train(), nn.Identity(), nn.InstanceNorm2d(5)]
    assert not any(map(is_foldable, others))


# The cache.


def in_place(block: Any) -> None:
    with torch.no_grad():
        block.conv.time_taps.mul_(2)


def through_data(block: Any) -> None:
    block.conv.time_taps.data.mul_(2)  # does not count as a change to autograd's version counter


def through_detach(block: Any) -> None:
    block.bn.weight.detach().mul_(2)


def through_numpy(block: Any) -> None:
    block.conv.freq_taps.detach().numpy()[...] *= 2


def optimizer_step(block: Any) -> None:
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    with torch.enable_grad():
        block(random(1, 3, 9, 8)).sum().backward()
    optimizer.step()


def another_parameter(block: Any) -> None:
    block.conv.freq_taps = nn.Parameter(2 * block.conv.freq_taps.detach())


def another_tensor_as_data(block: Any) -> None:
    block.conv.freq_taps.data = 2 * block.conv.freq_taps.data


def load_state_dict(block: Any) -> None:
    block.load_state_dict({k: 2 * v for k, v in block.state_dict().items()})


def load_state_dict_assign(block: Any) -> None:
    block.load_state_dict({k: 2 * v for k, v in block.state_dict().items()}, assign=True)


def running_variance(block: Any) -> None:
    block.bn.running_var.fill_(3)


def training_step_of_batch_norm(block: Any) -> None:
    block.train()(random(2, 3, 9, 8))
    block.eval()


def eps(block: Any) -> None:
    block.bn.eps = 0.5


def another_batch_norm(block: Any) -> None:
    block.bn = nn.BatchNorm2d(7, affine=False).double().eval()


def dtype_there_and_back(block: Any) -> None:
    block.half()
    block.double()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change",
    [
        in_place,
        through_data,
        through_detach,
        through_numpy,
        optimizer_step,
        another_parameter,
        another_tensor_as_data,
        load_state_dict,
        load_state_dict_assign,
        running_variance,
        training_step_of_batch_norm,
        eps,
        another_batch_norm,
        dtype_there_and_back,
    ],
)
def test_folding_follows_the_weights(
    backend: str, change: Callable[[Any], None], context: Callable[[], Any]
) -> None:
    block = trained(SepConvBlock(3, 7)).eval()
    x = random(1, 3, 9, 8)
    with context():
        before = block(x)
        assert torch.equal(block(x), before)
    change(block)
    with context():
        after = block(x)
    with torch.no_grad():
        torch.testing.assert_close(after, to_eager(block)(x), **EXACT)
    assert not torch.equal(after, before)


def test_folding_follows_weights_that_reuse_memory(backend: str) -> None:
    """New tensors where freed ones were: same address, same version, other values."""
    block = trained(SepConvBlock(3, 7)).eval()
    x = random(1, 3, 9, 8)
    with torch.no_grad():
        for i in range(20):
            del block.conv.time_taps
            block.conv.time_taps = nn.Parameter(random(7, 3, seed=i))
            torch.testing.assert_close(block(x), to_eager(block)(x), **EXACT)


def test_eval_in_inference_mode_then_training(backend: str) -> None:
    """What inference mode cached does not haunt autograd."""
    block = trained(SepConvBlock(3, 7)).eval()
    x = random(2, 3, 9, 8)
    with torch.inference_mode():
        expected = block(x)
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    y = block(x)
    torch.testing.assert_close(y, expected.clone(), **EXACT)
    y.sum().backward()
    assert x.grad is not None


# What a value does not tell is not remembered.


def jvp(block: Any, x: Tensor, tangent: Tensor) -> Tensor:
    """Of the output, along a tangent of the taps."""
    name = "conv.time_taps"
    taps = dict(block.named_parameters())[name].detach()
    with torch.no_grad():
        return torch.func.jvp(
            lambda t: torch.func.functional_call(block, {name: t}, x), (taps,), (tangent,)
        )[1]


def test_every_tangent_gets_its_own_derivative(backend: str) -> None:
    block = trained(SepConvBlock(3, 7)).eval()
    twin, x = to_eager(block), random(1, 3, 9, 8)
    for seed in range(3):
        tangent = random(7, 3, seed=seed)
        got = jvp(block, x, tangent)
        step = 1e-6 * tangent
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                twin.conv.time.weight.copy_((block.conv.time_taps + sign * step)[:, None, :, None])
                values.append(twin(x))
        torch.testing.assert_close(got, (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-7)


def test_forward_mode_leaves_nothing_behind(backend: str) -> None:
    from torch.autograd import forward_ad

    block, x = trained(SepConvBlock(3, 7)).eval(), random(1, 3, 9, 8)
    weight = block.bn.weight.detach()
    with torch.no_grad():
        expected = block(x)
        derivatives = []
        for seed in range(2):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(weight, random(7, seed=seed))
                y = torch.func.functional_call(block, {"bn.weight": dual}, x)
                derivatives.append(forward_ad.unpack_dual(y).tangent)
        assert not torch.equal(*derivatives)
        assert torch.equal(block(x), expected)


def under_vmap(block: Any, x: Tensor) -> None:
    state = {k: torch.stack([v, 2 * v]) for k, v in block.state_dict().items() if v.dim()}
    torch.func.vmap(lambda s: torch.func.functional_call(block, s, x))(state)


def under_fake_tensors(block: Any, x: Tensor) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        block(mode.from_tensor(x))


def under_make_fx(block: Any, x: Tensor) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    for pre_dispatch in (False, True):
        make_fx(block, pre_dispatch=pre_dispatch)(x)


def under_jit_trace(block: Any, x: Tensor) -> None:
    torch.jit.trace(block, (x,), check_trace=False)


def under_flop_counter(block: Any, x: Tensor) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        block(x)


def under_a_function_mode(block: Any, x: Tensor) -> None:
    class Doubles(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            y = func(*args, **(kwargs or {}))
            return 2 * y if func is torch.rsqrt or func is Tensor.rsqrt else y

    with Doubles():
        block(x)


def under_export(block: Any, x: Tensor) -> None:
    torch.export.export(block, (x,))


class Tagged(Tensor):
    """A subclass that says what it is."""


def with_a_subclass(block: Any, x: Tensor) -> None:
    state = {"conv.time_taps": block.conv.time_taps.detach().as_subclass(Tagged)}
    torch.func.functional_call(block, state, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [True, False], ids=["first", "after a pass"])
@pytest.mark.parametrize(
    "under",
    [
        under_vmap,
        under_fake_tensors,
        under_make_fx,
        under_jit_trace,
        under_flop_counter,
        under_a_function_mode,
        under_export,
        with_a_subclass,
    ],
)
def test_no_transform_mode_or_tracer_leaves_anything_behind(
    under: Callable[[Any, Tensor], Any], first: bool
) -> None:
    block = trained(SepConvBlock(3, 7)).eval()
    twin, x = to_eager(block), random(1, 3, 9, 8)
    with torch.no_grad():
        if not first:
            block(x)
        kept = block._fold._kept
        under(block, x)
        assert block._fold._kept is kept
        y = block(x)
        assert type(y) is Tensor
        torch.testing.assert_close(y, twin(x), **EXACT)


@pytest.mark.parametrize("folded", [False, True])
def test_what_is_handed_out_is_the_callers(backend: str, folded: bool) -> None:
    block: Any = trained(SepConvBlock(3, 7)).eval()
    if folded:
        block.fold_()
    x = random(1, 3, 9, 8)
    with torch.no_grad():
        expected = block(x)
        parameters = block.inference_parameters()
        for tensor in (parameters.time_taps, parameters.freq_taps, parameters.bias):
            tensor.fill_(float("nan"))
        assert torch.equal(block(x), expected)
