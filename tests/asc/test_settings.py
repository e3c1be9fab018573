import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from asc.settings import About, Option, check, options

LENGTH = About("How long.", at_least=1, at_most=9)
RATE = About(above=0)


@dataclass(frozen=True)
class Inner:
    name: str = "plain"
    length: Annotated[int, LENGTH] = 3

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outer:
    inner: Annotated[Inner, About("Which.")] = field(default_factory=Inner)
    rate: Annotated[float | None, RATE] = None
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("rate", [None, 1e-9, 3])
def test_good_values(length: int, rate: float | None) -> None:
    assert Outer(Inner(length=length), rate, "b").inner.length == length


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": "plain"}, "inner must be a Inner, got 'plain'"),
        ({"rate": 0}, "rate must be above 0, got 0"),
        ({"rate": math.nan}, "rate must be a finite number or None, got nan"),
        ({"rate": math.inf}, "rate must be a finite number or None, got inf"),
        ({"rate": "1"}, "rate must be a finite number or None, got '1'"),
        ({"rate": True}, "rate must be a finite number or None, got True"),
        ({"kind": "c"}, "kind must be one of a, b, got 'c'"),
        ({"kind": None}, "kind must be one of a, b, got None"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str, refused: Callable[..., Any]) -> None:
    with refused(message):
        Outer(**values)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, "at least 1"),
        (10, "at most 9"),
        (2.0, "an integer"),
        (True, "an integer"),
        (None, "an integer"),
    ],
)
def test_bad_integers(length: Any, expected: str, refused: Callable[..., Any]) -> None:
    with refused("length", expected):
        Inner(length=length)


def test_a_help_text_makes_an_option() -> None:
    @dataclass(frozen=True)
    class Chosen:
        inner: Annotated[Inner, About("Which.")] = Inner()
        rate: Annotated[float, RATE] = 1.0
        kind: Annotated[Literal["a", "b"], About("What.")] = "a"

    assert list(options(Chosen)) == [
        Option("inner", str, "plain", About("Which.")),
        Option("length", int, "3", LENGTH),
        Option("kind", Literal["a", "b"], "a", About("What.")),
    ]
