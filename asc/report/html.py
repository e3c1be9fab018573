"""Pages: one file each, that needs nothing else, from the templates beside this one."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from asc.report.tables import printable

_NONE = "\u2013"
_THIN = "\u202f"  # a narrow space that does not break
_MINUS = "\u2212"


def render(template: str, **content: Any) -> str:
    """A page; everything that is not markup of ours is escaped."""
    return printable(_environment().get_template(template).render(**content))


def nats(value: float | None) -> str:
    """A log loss or a Brier score."""
    return _NONE if value is None else f"{value:.3f}".replace("-", _MINUS)


def percent(value: float | None) -> str:
    """A share."""
    return _NONE if value is None else f"{100 * value:.1f}{_THIN}%".replace("-", _MINUS)


def signed(value: float, kind: str) -> str:
    """A difference."""
    text = number(value, kind)
    return text if value < 0 else f"+{text}"


def number(value: float | None, kind: str) -> str:
    """A score of a kind, "nats" or "percent"."""
    return {"nats": nats, "percent": percent}[kind](value)


def span(ends: Sequence[float] | None, kind: str) -> str:
    """An interval."""
    if ends is None:
        return ""
    if kind == "percent":
        return f"{100 * ends[0]:.1f} to {percent(ends[1])}".replace("-", _MINUS)
    return f"{nats(ends[0])} to {nats(ends[1])}"


def count(value: int) -> str:
    """A number of things."""
    return f"{value:,}".replace(",", _THIN)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("asc.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (nats, percent, signed, number, span, count)
    environment.filters |= {filter.__name__: filter for filter in filters}
    return environment
