"""The program to compile: a config, one of its steps, and the chips."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmi_jax.aot.targets import Target
from fmi_jax.config import ExperimentConfig, from_dict
from fmi_jax.errors import UsageError
from fmi_jax.fields import as_dict, differences, set_fields
from fmi_jax.flags import assign
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.rules import validate

WHAT = ("train", "eval", "features")
CENTRE = 0.875  # fraction of the prepared side that the default augmentation keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One step of a config, to be compiled for a target.

    Attributes:
      target: chips to compile for.
      what: kind of step: "train", "eval" (logits) or "features" (of frozen backbones).
      config: experiment config; `train.batch_size` is the global batch of every step.
      optimization: level of the TPU compiler: "" (its own, as in a run) or "O1", which compiles
        in a tenth of the time. With "O1" collectives, kept arrays and peak memory are right,
        estimated cycles are not.
    """

    target: Target
    what: str
    config: ExperimentConfig
    optimization: str = ""

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return {
            "target": dataclasses.asdict(self.target),
            "what": self.what,
            "config": as_dict(self.config),
            "optimization": self.optimization,
        }

    def title(self) -> str:
        """One line: kind of step, target, and every field of the config that is not the default."""
        changed = differences(ExperimentConfig(), self.config)
        fields = " ".join(f"{name}={new}" for name, (_, new) in changed.items())
        where = f"{self.target.count} x {self.target.name} ({self.target.topology})"
        return f"{self.what} step for {where}: {fields or 'the default config'}"


def program(
    target: Target,
    what: str = "train",
    *,
    fields: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    optimization: str = "",
) -> Program:
    """Make the program of a config that differs from the default in some fields.

    If `data.prepared_size` keeps its default and is too small, it becomes `image_size` / 0.875:
    1170 pixels for 1024.

    Args:
      target: chips to compile for.
      what: kind of step, one of `WHAT`.
      fields: values by dotted name ("train.batch_size").
      assignments: config fields as text: "backbone.drop_path=0.1".
      optimization: level of the TPU compiler.

    Raises:
      UsageError: the step or a field does not exist, or a value is invalid.
    """
    if what not in WHAT:
        raise UsageError(f"what={what!r}: expected one of {', '.join(WHAT)}.")
    config = ExperimentConfig()
    set_fields(config, fields or {})
    default = ExperimentConfig().data.prepared_size
    if config.data.prepared_size == default and config.image_size > CENTRE * default:
        config.data.prepared_size = round(config.image_size / CENTRE)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: expected FIELD=VALUE, such as --set {name}=1.")
        assign(config, name, text)
    validate(config)
    if what == "train" and not protocol_of(config).trains:
        raise UsageError(
            f"protocol {config.protocol!r} trains no network: expected --what features, or a"
            " protocol that trains."
        )
    return Program(target=target, what=what, config=config, optimization=optimization)


def from_json(text: str) -> Program:
    """Read the program that `json.dumps(program.to_json())` wrote."""
    values = json.loads(text)
    return Program(
        target=Target(**values["target"]),
        what=values["what"],
        config=from_dict(values["config"]),
        optimization=values["optimization"],
    )
