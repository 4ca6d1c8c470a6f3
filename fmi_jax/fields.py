"""Fields of a config of any class, by their dotted names, and a config as plain JSON values."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fmi_jax.errors import unknown_name
from fmi_jax.rules import check_types
from fmi_jax.settings import BaseConfig

_Config = TypeVar("_Config", bound=BaseConfig)


def as_dict(config: BaseConfig) -> dict[str, Any]:
    """Convert the config to plain JSON values."""

    def fields(section: Any) -> dict[str, Any]:
        return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}

    return json.loads(json.dumps(config, default=fields))


def from_dict(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """Invert `as_dict`: make a config of that class.

    Raises:
      UsageError: a field is unknown, or a value has the wrong type.
    """

    def fill(target: Any, values: Mapping[str, Any], where: str) -> Any:
        names = [field.name for field in dataclasses.fields(target)]
        for name, value in values.items():
            if name not in names:
                raise unknown_name("config field", where + name, [where + n for n in names])
            current = getattr(target, name)
            if dataclasses.is_dataclass(current):
                fill(current, value, f"{where}{name}.")
            else:
                setattr(target, name, value)
        return target

    config = fill(kind(), values, "")
    check_types(config)
    return config


def flatten(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted names: `{"optim.learning_rate": 1e-4, ...}`."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{where}{name}."))
        else:
            found[where + name] = value
    return found


def flat(config: BaseConfig) -> dict[str, Any]:
    """Convert the config to plain JSON values by dotted name."""
    return flatten(as_dict(config))


def field_names(kind: type[BaseConfig]) -> list[str]:
    """Dotted names of all fields of a class of configs."""
    return list(flat(kind()))


def within(field: str, names: Iterable[str]) -> bool:
    """Test whether a field is among the named fields and sections, by dotted name."""
    return any(field == name or field.startswith(name + ".") for name in names)


def set_fields(config: BaseConfig, values: Mapping[str, Any]) -> None:
    """Set fields by their dotted names."""
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        setattr(getattr(config, section) if section else config, field, value)


def differences(old: BaseConfig, new: BaseConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, by dotted name: `{"optim.learning_rate": (old, new)}`."""
    a, b = flat(old), flat(new)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}
