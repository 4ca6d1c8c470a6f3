"""Rules for config fields, each declared at its field: `epochs: float = positive(100.0)`.

Every function returns a dataclass field with this default; `config.validate` holds values to them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Number = TypeVar("_Number", int, float)
_Numbers = TypeVar("_Numbers", tuple[int, ...], tuple[float, ...])
_Value = TypeVar("_Value")
_RULES = "rules"


@dataclasses.dataclass(frozen=True)
class Condition:
    """Test of the value of a field.

    Attributes:
      holds: tests a value.
      message: words for a value that fails, to follow the field's name.
    """

    holds: Callable[[Any], bool]
    message: str


def ruled(default: _Value, *rules: Condition) -> _Value:
    """Field whose values meet these rules; only the first broken one is reported."""
    # A field stands for its default in the eyes of a type checker.
    return dataclasses.field(default=default, metadata={_RULES: rules})


def broken(field: dataclasses.Field[Any], value: Any) -> str:
    """Message of the first rule of a field that a value breaks, or nothing."""
    rules: tuple[Condition, ...] = field.metadata.get(_RULES, ())
    return next((rule.message for rule in rules if not rule.holds(value)), "")


def positive(default: _Number) -> _Number:
    """Field for a number above 0."""
    return ruled(default, Condition(lambda x: x > 0, "expected more than 0"))


def not_negative(default: _Number, at_most: float | None = None) -> _Number:
    """Field for a number from 0 on, up to `at_most` if that is given."""
    rules = [Condition(lambda x: x >= 0, "expected 0 or more")]
    if at_most is not None:
        rules.append(Condition(lambda x: x <= at_most, f"expected at most {at_most}"))
    return ruled(default, *rules)


def fraction(default: float) -> float:
    """Field for a number from 0 to 1."""
    return ruled(default, Condition(lambda x: 0 <= x <= 1, "expected between 0 and 1"))


def factor(default: float) -> float:
    """Field for a number above 0, up to 1."""
    return ruled(default, Condition(lambda x: 0 < x <= 1, "expected more than 0, at most 1"))


def one_of(default: str, *choices: str, reasons: Mapping[str, str] | None = None) -> str:
    """Field for one of these words.

    Args:
      default: the default.
      choices: valid words, the default among them.
      reasons: messages for invalid words that a user may well try.
    """
    tried = [
        Condition(lambda x, word=word: x != word, why) for word, why in (reasons or {}).items()
    ]
    return ruled(
        default, *tried, Condition(lambda x: x in choices, f"expected one of {', '.join(choices)}")
    )


def some_of(default: tuple[str, ...], *choices: str) -> tuple[str, ...]:
    """Field for one or more of these words."""
    return ruled(
        default,
        Condition(
            lambda x: bool(x) and {*x} <= {*choices}, f"expected some of {', '.join(choices)}"
        ),
    )


def different(default: _Numbers) -> _Numbers:
    """Field for one or more different numbers above 0."""
    return ruled(
        default,
        Condition(
            lambda x: bool(x) and all(n > 0 for n in x) and len({*x}) == len(x),
            "expected one or more different numbers above 0",
        ),
    )


def low_high(default: tuple[float, float], at_most: float | None = None) -> tuple[float, float]:
    """Field for a range, both ends above 0, up to `at_most` if that is given."""
    rules = [Condition(lambda x: 0 < x[0] <= x[1], "expected 0 < low <= high")]
    if at_most is not None:
        rules.append(Condition(lambda x: x[1] <= at_most, f"expected at most {at_most}"))
    return ruled(default, *rules)
