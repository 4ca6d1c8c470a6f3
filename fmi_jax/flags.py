"""Setting config fields from text, with the same parser as the flags of `run.py`."""

import copy
import operator

from absl import flags
from ml_collections import config_flags

from fmi_jax.errors import UsageError, unknown_name
from fmi_jax.fields import field_names, set_fields
from fmi_jax.rules import check_types
from fmi_jax.settings import BaseConfig


def assign(config: BaseConfig, name: str, text: str) -> None:
    """Set a config field by its dotted name from text: "3e-4", "True", "(20, 200)".

    `--set NAME=TEXT` means the same as `--config.NAME=TEXT` of `run.py`.

    Raises:
      UsageError: the field does not exist, or the text is not a value of its type.
    """
    check_field(type(config), name)
    value = operator.attrgetter(name)
    values = flags.FlagValues()
    line = ["", f"--config.{name}={text}"]
    try:
        config_flags.DEFINE_config_dataclass(
            "config", copy.deepcopy(config), flag_values=values, sys_argv=line
        )
        values(line)
        check_types(values.config)
    except (flags.Error, UsageError) as error:
        expected = f"{type(value(config)).__name__}, such as {value(config)!r}"
        raise UsageError(f"{name}={text}: expected {expected}.") from error
    set_fields(config, {name: value(values.config)})


def check_field(kind: type[BaseConfig], name: str) -> None:
    """Raise `UsageError` unless configs of that class have a field of that dotted name."""
    if name not in (names := field_names(kind)):
        raise unknown_name("config field", name, names)
