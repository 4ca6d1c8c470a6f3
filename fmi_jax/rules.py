"""Rules for config fields, each declared at its field: `epochs: float = positive(100.0)`.

Such a function returns a dataclass field with this default; `validate` holds a config, which is a
dataclass of dataclasses, to types and rules.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from fmi_jax.errors import UsageError, is_plain

_Number = TypeVar("_Number", int, float)
_Numbers = TypeVar("_Numbers", tuple[int, ...], tuple[float, ...])
_Value = TypeVar("_Value")
_MOST = 2**32 - 1  # largest random seed; no other number comes near
_MOST_FLOAT = 3.4e38  # of float32, as which a device gets it
_MOST_VALUES = 1000
_MOST_SHOWN = 300  # characters of a wrong value in a message
_NO_TEXT = (
    "expected text without control characters, below 256 bytes (a path: between slashes, and below"
    " 4096 in all)"
)
_RULES = "rules"
_EARLIER = "earlier"


@dataclasses.dataclass(frozen=True)
class Condition:
    """Test of the value of a field.

    Attributes:
      holds: tests a value.
      message: words for a value that fails, to follow the field's name.
    """

    holds: Callable[[Any], bool]
    message: str


def ruled(default: _Value, *rules: Condition, earlier: _Value | None = None) -> _Value:
    """Field whose values meet these rules; only the first broken one is reported.

    Args:
      default: the default.
      rules: conditions in the order in which they are tested.
      earlier: default of earlier versions, which configs that do not read the field still hold.
    """
    # A field stands for its default in the eyes of a type checker.
    return dataclasses.field(default=default, metadata={_RULES: rules, _EARLIER: earlier})


def positive(default: _Number, at_most: float | None = None) -> _Number:
    """Field for a number above 0, up to `at_most` if that is given."""
    return ruled(default, Condition(lambda x: x > 0, "expected more than 0"), *_up_to(at_most))


def not_negative(default: _Number, at_most: float | None = None) -> _Number:
    """Field for a number from 0 on, up to `at_most` if that is given."""
    return ruled(default, Condition(lambda x: x >= 0, "expected 0 or more"), *_up_to(at_most))


def _up_to(most: float | None) -> tuple[Condition, ...]:
    return () if most is None else (Condition(lambda x: x <= most, f"expected at most {most}"),)


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
        default,
        *tried,
        Condition(
            lambda x: x in choices,
            f"expected one of {', '.join(choice or repr(choice) for choice in choices)}",
        ),
    )


def some_of(default: tuple[str, ...], *choices: str) -> tuple[str, ...]:
    """Field for one or more of these words."""
    return ruled(
        default,
        Condition(
            lambda x: bool(x) and {*x} <= {*choices}, f"expected some of {', '.join(choices)}"
        ),
    )


def different(default: _Numbers, earlier: _Numbers | None = None) -> _Numbers:
    """Field for one or more different numbers above 0; see `ruled` for `earlier`."""
    return ruled(
        default,
        Condition(
            lambda x: bool(x) and all(n > 0 for n in x) and len({*x}) == len(x),
            "expected one or more different numbers above 0",
        ),
        earlier=earlier,
    )


def low_high(default: tuple[float, float], at_most: float | None = None) -> tuple[float, float]:
    """Field for a range, both ends above 0, up to `at_most` if that is given."""
    rules = [Condition(lambda x: 0 < x[0] <= x[1], "expected 0 < low <= high")]
    if at_most is not None:
        rules.append(Condition(lambda x: x[1] <= at_most, f"expected at most {at_most}"))
    return ruled(default, *rules)


def earlier_defaults(config: Any, where: str = "") -> dict[str, Any]:
    """List the defaults that fields had in earlier versions, by dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= earlier_defaults(value, f"{where}{field.name}.")
        elif (earlier := field.metadata.get(_EARLIER)) is not None:
            found[where + field.name] = earlier
    return found


def check_types(config: Any) -> None:
    """Convert every value to the type of its field: 1 to 1.0, a list to a tuple.

    Raises:
      UsageError: lists every value that cannot be converted.
    """
    wrong = []

    def check(node: Any, where: str) -> None:
        kinds = typing.get_type_hints(type(node))
        for field in dataclasses.fields(node):
            value, name = getattr(node, field.name), where + field.name
            if dataclasses.is_dataclass(value):
                check(value, f"{name}.")
                continue
            kind = kinds[field.name]
            try:
                setattr(node, field.name, _of_type(kind, value))
            except (TypeError, OverflowError):
                example = getattr(type(node)(), field.name)
                wrong.append(
                    f"{name}={_shown(value)}: expected {_words(kind)}, such as {example!r}"
                )

    check(config, "")
    if wrong:
        raise UsageError("config: " + "; ".join(wrong) + ".")


def validate(config: Any) -> None:
    """Raise one `UsageError` that lists every invalid value of a config.

    Values are first converted to the types of their fields (`check_types`). Beside the rules of its
    field, every number must be finite and of a sensible size, and every text a possible name.
    """
    check_types(config)

    def wrong(node: Any, where: str) -> Iterator[str]:
        sound = True
        for field in dataclasses.fields(node):
            value, name = getattr(node, field.name), where + field.name
            if dataclasses.is_dataclass(value):
                found = list(wrong(value, f"{name}."))
            else:
                rules = field.metadata.get(_RULES, ())
                messages = (rule.message for rule in rules if not rule.holds(value))
                first = next(messages, "") or _excess(value)
                found = [f"{name}={_shown(value)}: {first}"] if first else []
            sound = sound and not found
            yield from found
        if sound and hasattr(node, "contradictions"):  # which rely on the rules
            yield from node.contradictions()

    if found := list(wrong(config, "")):
        raise UsageError("config: " + "; ".join(found) + ".")


def _excess(value: Any) -> str:
    """Words for a value that no field takes; empty for one that some may."""
    if isinstance(value, tuple):
        if len(value) > _MOST_VALUES:
            return f"expected at most {_MOST_VALUES} values"
        return next(filter(None, map(_excess, value)), "")
    if isinstance(value, str):
        names = value.encode(errors="replace").split(b"/")
        possible = is_plain(value) and max(map(len, names)) < 256 and len(value) < 4096
        return "" if possible else _NO_TEXT
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    most = _MOST_FLOAT if isinstance(value, float) else _MOST
    return "" if abs(value) <= most else f"expected at most {most}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _of_type(kind: Any, value: Any) -> Any:
    """Convert a value to a type; `TypeError` if it cannot be."""
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise TypeError
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise TypeError
        return tuple(_of_type(k, v) for k, v in zip(kinds, value, strict=True))
    accepted = (int, float) if kind is float else kind
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
        raise TypeError
    return kind(value)


def _words(kind: Any) -> str:
    """Describe a type in words: "float", "2 values of float"."""
    if typing.get_origin(kind) is not tuple:
        return kind.__name__
    kinds = typing.get_args(kind)
    count = "values" if kinds[-1] is Ellipsis else f"{len(kinds)} values"
    return f"{count} of {kinds[0].__name__}"
