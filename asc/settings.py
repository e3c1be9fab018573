"""What a setting is: one field of a dataclass, from which its checks and its option are derived.

The field's type and `About` stand in its annotation, its default is the field's own:

    epochs: Annotated[int, About("Passes over the training clips.", at_least=1)] = 200
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from asc.errors import UserError


@dataclass(frozen=True)
class About:
    """The text of a setting's option (None: it has none) and its bounds, `above` exclusive."""

    help: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None

    def broken_by(self, value: float) -> str | None:
        """The bound that a value breaks, in words."""
        if self.at_least is not None and value < self.at_least:
            return f"at least {self.at_least}"
        if self.at_most is not None and value > self.at_most:
            return f"at most {self.at_most}"
        if self.above is not None and value <= self.above:
            return f"above {self.above}"
        return None


@dataclass(frozen=True)
class Option:
    """What a command line has to know of a setting."""

    name: str
    kind: Any
    default: str
    about: About


def check(settings: Any) -> None:
    """Checks a dataclass of settings; meant for its `__post_init__`.

    Raises:
        UserError: a field whose value is not of its type, or out of its bounds.
    """
    for name, (kind, about) in _annotated(type(settings)).items():
        value = getattr(settings, name)
        kinds = get_args(kind) if NoneType in get_args(kind) else (kind,)
        if not any(_is(value, each) for each in kinds):
            expected = " or ".join(map(_in_words, kinds))
        elif value is None or (broken := about.broken_by(value)) is None:
            continue
        else:
            expected = broken
        raise UserError(f"{name} must be {expected}, got {value!r}")


def options(settings: Any) -> Iterator[Option]:
    """The settings that have an option, in the order of a dataclass's fields.

    A field that holds a dataclass is chosen by that one's `name`; its own settings follow it.
    """
    annotated = _annotated(settings)
    for f in fields(settings):
        kind, about = annotated[f.name]
        if not is_dataclass(kind):
            if about.help is not None:
                yield Option(f.name, kind, str(f.default), about)
        else:
            if about.help is not None:
                yield Option(f.name, str, f.default.name, about)
            yield from options(kind)


def _annotated(settings: type) -> dict[str, tuple[Any, About]]:
    """Type and `About` of every field."""
    found = {}
    for name, hint in get_type_hints(settings, include_extras=True).items():
        kind, about = get_args(hint) if get_origin(hint) is Annotated else (hint, About())
        found[name] = kind, about
    return found


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is int if kind is int else isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    names = {
        int: "an integer",
        float: "a finite number",
        str: "a name",
        bool: "true or false",
        NoneType: "None",
    }
    return names.get(kind) or f"a {kind.__name__}"
