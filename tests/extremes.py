"""Which class a result has at the edges of a dtype: finite, infinite of either sign, or NaN.

A value is followed through the computation with how far rounding may have moved it, in float64.
Its class is `sure` where every order of summation, with or without fused multiply-add, has the same
one. Where it is finite, value and error bound are known too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

EPS, LARGEST = 2.0**-23, 2.0**128  # of float32, which all kernels but those for float64 compute in
SMALLEST = 2.0**-126  # what underflow may cost a result, in all


VALUES = torch.tensor([torch.nan, torch.inf, 3e38, 1e38, 1e20, 1e-30, 1e-38, 1e-45, 0.0])


@dataclass(frozen=True)
class Case:
    """Arguments with a share of `VALUES` of either sign among them, or all huge or tiny."""

    x: Tensor
    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    grad: Tensor  # of the bare operator
    dilation: int
    pool: int

    @staticmethod
    def draw(seed: int) -> "Case":
        rng = torch.Generator().manual_seed(seed)

        def one_of(*choices: Any) -> Any:
            return choices[int(torch.randint(len(choices), (), generator=rng))]

        def some(share: float, *shape: int) -> Tensor:
            values = torch.randn(shape, generator=rng)
            extreme = VALUES[torch.randint(len(VALUES), shape, generator=rng)]
            extreme = extreme * (1 - 2 * torch.randint(2, shape, generator=rng))
            return torch.where(torch.rand(shape, generator=rng) < share, extreme, values)

        cin, cout = one_of(1, 1, 2, 3), one_of(1, 3, 8, 20)
        shape = (one_of(1, 2, 3), cin, one_of(1, 5, 9, 14), one_of(1, 4, 13, 20))
        of_x, of_weights = one_of(0, 0.01, 0.05, 0.3), one_of(0, 0, 0.03, 0.2)

        def block(cin: int, cout: int) -> tuple[Tensor, ...]:
            drawn = [some(of_weights, *s) for s in ((cout, cin), (cout, 3), (cout, 3), (cout,))]
            return tuple(w * one_of(1, 1, 1, 1, 1e-38, 1e-20, 1e20, 1e30) for w in drawn)

        x = some(of_x, *shape) * one_of(1, 1, 1e-38, 1e-20, 1e20, 1e38)
        grad = some(of_x, shape[0], cout, *shape[2:])
        return Case(x, block(cin, cout), block(cout, 5), grad, one_of(1, 2, 3), one_of(1, 2, 3))


@dataclass(frozen=True)
class Known:
    """Elementwise: a value, and where it is finite how far off it may be; else `error` is 0."""

    value: Tensor
    error: Tensor
    sure: Tensor
    overflown: Tensor  # infinite, but a fused multiply-add would not have seen it

    def map(self, change: Callable[[Tensor], Tensor]) -> "Known":
        return Known(*(change(t) for t in (self.value, self.error, self.sure, self.overflown)))


def exact(t: Tensor) -> Known:
    t = t.detach().double()
    return Known(t, torch.zeros_like(t), torch.ones_like(t).bool(), torch.zeros_like(t).bool())


def product(a: Known, b: Known) -> Known:
    value = a.value * b.value
    finite = a.value.isfinite() & b.value.isfinite()
    error = a.value.abs() * b.error + b.value.abs() * a.error + a.error * b.error
    error = torch.where(finite, error, 0)
    zero = ((a.value == 0) & (a.error == 0)) | ((b.value == 0) & (b.error == 0))
    error = torch.where(zero, 0, error + EPS * value.abs() + 2.0**-149)
    signed = (_signed(a) & _signed(b)) | finite | zero
    fits, large = value.abs() + error < 0.999 * LARGEST, value.abs() - error > 2.1 * LARGEST
    overflown = finite & large
    value = torch.where(overflown, value.sign() * torch.inf, value)
    sure = a.sure & b.sure & signed & (fits | large | ~finite)
    nan = (a.value.isnan() & a.sure) | (b.value.isnan() & b.sure)  # whatever it meets
    return _tidy(torch.where(nan, torch.nan, value), error, sure | nan, overflown)


def total(terms: Known, dim: int | tuple[int, ...]) -> Known:
    """The sum over one or more dimensions."""
    finite = terms.value.isfinite()
    v = torch.where(finite, terms.value, 0)
    count = terms.value.numel() / max(v.sum(dim).numel(), 1)
    size = (v.abs() + terms.error).sum(dim)
    error = terms.error.sum(dim) + (count + 8) * EPS * size
    plain = terms.value.isinf() & ~terms.overflown
    up, down = (plain & (terms.value > 0)).any(dim), (plain & (terms.value < 0)).any(dim)
    over_up = (terms.overflown & (terms.value > 0)).any(dim)
    over_down = (terms.overflown & (terms.value < 0)).any(dim)
    nan = (terms.value.isnan() & terms.sure).any(dim) | (
        (plain & terms.sure & (terms.value > 0)).any(dim)
        & (plain & terms.sure & (terms.value < 0)).any(dim)
    )
    fits = size + error < LARGEST / 2
    one_way = ~((over_up & (over_down | down)) | (over_down & up))
    sure = nan | (terms.sure.all(dim) & fits & one_way)
    value = v.sum(dim)
    value = torch.where(up | over_up, torch.inf, value)
    value = torch.where(down | over_down, -torch.inf, value)
    value = torch.where(nan | terms.value.isnan().any(dim), torch.nan, value)
    return _tidy(value, error, sure, torch.zeros_like(sure))


def convolved(x: Known, block: tuple[Tensor, ...], dilation: int) -> tuple[Known, Known]:
    """(z, y) of the bare operator; block: pointwise, time_taps, freq_taps, bias."""
    pointwise, time, freq, bias = block
    p = exact(pointwise).map(lambda t: t[None, :, :, None, None])
    z = total(product(p, x.map(lambda t: t[:, None])), 2)
    terms = [
        product(
            exact(taps[:, k]).map(lambda t: t[:, None, None]), moved(z, axis, (k - 1) * dilation)
        )
        for axis, taps in ((2, time), (3, freq))
        for k in range(3)
    ]
    terms.append(exact(bias[:, None, None].expand_as(z.value)))
    return z, total(stacked(terms), 0)


def pooled(y: Known, pool: int) -> Known:
    """ReLU and the means over windows."""
    cut = (y.value < 0) & (y.value.isinf() | (y.value + y.error < 0))
    value = torch.where(y.value < 0, 0, y.value)
    y = _tidy(value, torch.where(cut, 0, y.error), y.sure, y.overflown & ~cut)
    rows, columns = y.value.shape[2] // pool, y.value.shape[3] // pool

    def windows(t: Tensor) -> Tensor:
        t = t[:, :, : rows * pool, : columns * pool]
        return t.reshape(*t.shape[:2], rows, pool, columns, pool)

    y = total(y.map(windows), (3, 5))
    return Known(y.value / pool**2, y.error / pool**2 + SMALLEST, y.sure, y.overflown)


def gradients(
    grad: Tensor, x: Tensor, block: tuple[Tensor, ...], dilation: int, pool: int | None
) -> list[Known]:
    """Of x, pointwise, time_taps, freq_taps and bias; pool None: neither ReLU nor pooling."""
    pointwise, time, freq, _ = block
    known = exact(x)
    z, y = convolved(known, block, dilation)
    g = exact(grad)
    if pool is not None:
        spread = grad.double().repeat_interleave(pool, 2).repeat_interleave(pool, 3) / pool**2
        spread = pad(spread, (0, x.shape[3] - spread.shape[3], 0, x.shape[2] - spread.shape[2]))
        kept = ~(y.value <= 0)
        decided = y.sure & (~y.value.isfinite() | (y.value.abs() > y.error) | (y.error == 0))
        finite = spread.isfinite()
        error = torch.where(finite & (spread != 0), EPS * spread.abs() + 2.0**-149, 0)
        value = torch.where(kept, spread, 0)
        sure = decided | (spread == 0)
        g = _tidy(value, torch.where(kept, error, 0), sure, torch.zeros_like(sure))
    terms, taps = [], []
    for axis, w in ((2, time), (3, freq)):
        for k in range(3):
            by = (k - 1) * dilation
            terms.append(
                moved(product(_of_channels(w[:, k]), g), axis, -by)
            )  # nothing comes from outside
            taps.append(total(product(g, moved(z, axis, by)), (0, 2, 3)))
    dz = total(stacked(terms), 0)
    p = exact(pointwise).map(lambda t: t[None, :, :, None, None])
    dx = total(product(p, dz.map(lambda t: t[:, :, None])), 1)
    of_pairs = product(dz.map(lambda t: t[:, :, None]), known.map(lambda t: t[:, None]))
    d_time, d_freq = (
        stacked(three).map(lambda t: t.transpose(0, 1)) for three in (taps[:3], taps[3:])
    )
    return [dx, total(of_pairs, (0, 3, 4)), d_time, d_freq, total(g, (0, 2, 3))]


def check(what: str, got: Tensor, known: Known) -> float:
    """The share of elements whose class is known; all of those have it, and finite ones their
    value."""
    value, sure = known.value, known.sure
    got = got.detach().double().cpu()
    same = torch.where(value.isnan(), got.isnan(), got == value)
    near = (got - value).abs() <= known.error + EPS * value.abs() + SMALLEST
    wrong = sure & ~torch.where(value.isfinite(), near, same)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what} at {where}: {got[where].item()}, not {value[where].item()} "
            f"within {known.error[where].item()}; {int(wrong.sum())} of {wrong.numel()} are wrong"
        )
    return sure.double().mean().item() if sure.numel() else 1.0


def stacked(parts: list[Known]) -> Known:
    fields = zip(*((k.value, k.error, k.sure, k.overflown) for k in parts), strict=True)
    return Known(*(torch.stack(field) for field in fields))


def moved(z: Known, axis: int, by: int) -> Known:
    """Element i is that at i + by, and exactly 0 outside the map."""
    length = z.value.shape[axis]
    there = torch.arange(length) + by
    outside = ((there < 0) | (there >= length)).view(-1, *[1] * (3 - axis))
    z = z.map(lambda t: t.index_select(axis, there.clamp(0, max(length - 1, 0))))
    value, error = z.value.masked_fill(outside, 0), z.error.masked_fill(outside, 0)
    return Known(value, error, z.sure | outside, z.overflown & ~outside)


def _of_channels(w: Tensor) -> Known:
    return exact(w[:, None, None])


def _signed(k: Known) -> Tensor:
    return k.value.isinf() | (k.value.abs() > k.error)


def _tidy(value: Tensor, error: Tensor, sure: Tensor, overflown: Tensor) -> Known:
    return Known(value, torch.where(value.isfinite(), error, 0), sure, overflown & value.isinf())
