"""What is compiled: a config, one of its steps, and the chips."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmi_jax import config as configs
from fmi_jax.aot.targets import Target
from fmi_jax.config import ExperimentConfig
from fmi_jax.config_rules import validate
from fmi_jax.errors import UsageError
from fmi_jax.flags import assign
from fmi_jax.protocols.registry import PROTOCOLS

WHAT = ("train", "eval", "features")
CENTRE = 0.875  # of the prepared side is what the default augmentation keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A step of a config, for a target.

    Attributes:
      target: the chips.
      what: "train", "eval" (logits) or "features" (of frozen backbones).
      config: the experiment; `train.batch_size` is the global batch of every step.
      optimization: level of the TPU compiler: "" (its own, as in a run) or "O1", which compiles
        in a tenth of the time; collectives, kept arrays and peak memory hold there, estimated
        cycles do not.
    """

    target: Target
    what: str
    config: ExperimentConfig
    optimization: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "target": dataclasses.asdict(self.target),
            "what": self.what,
            "config": configs.as_dict(self.config),
            "optimization": self.optimization,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Program":
        """The inverse of `to_json`."""
        return cls(
            target=Target(**values["target"]),
            what=values["what"],
            config=configs.from_dict(values["config"]),
            optimization=values["optimization"],
        )

    def title(self) -> str:
        """One line: kind of step, target, and every field of the config that is not the default."""
        changed = configs.differences(ExperimentConfig(), self.config)
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
    """The program of a config that differs from the default in some fields.

    Images are prepared for the size that is asked for, where `data.prepared_size` is not given:
    1170 pixels for 1024.

    Args:
      target: the chips.
      what: one of `WHAT`.
      fields: values by dotted name ("train.batch_size").
      assignments: config fields as they are typed: "backbone.drop_path=0.1".
      optimization: level of the TPU compiler.

    Raises:
      UsageError: no such step or field, or a value that cannot be.
    """
    if what not in WHAT:
        raise UsageError(f"what={what!r}: expected one of {', '.join(WHAT)}.")
    config = ExperimentConfig()
    for name, value in (fields or {}).items():
        section, _, field = name.rpartition(".")
        setattr(getattr(config, section) if section else config, field, value)
    default = ExperimentConfig().data.prepared_size
    if config.data.prepared_size == default and config.image_size > CENTRE * default:
        config.data.prepared_size = round(config.image_size / CENTRE)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: expected FIELD=VALUE, such as --set {name}=1.")
        assign(config, name, text)
    validate(config)
    if what == "train" and not PROTOCOLS[config.protocol].trains:
        raise UsageError(
            f"protocol {config.protocol!r} trains no network: expected --what features, or a"
            " protocol that trains."
        )
    return Program(target=target, what=what, config=config, optimization=optimization)


def from_json(text: str) -> Program:
    """The program that `json.dumps(program.to_json())` wrote."""
    return Program.from_json(json.loads(text))
