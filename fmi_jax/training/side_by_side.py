"""Training loop for many heads that share one stream of images, each with its own best step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmi_jax.training.loop import Loop, Progress
from fmi_jax.training.step import Arrays, TrainState

BEST = "best_"
"""Prefix of best values: `head.kernel` at its best validation is kept as `head.best_kernel`."""


def best_name(name: str) -> str:
    """Name under which the best values of a parameter are kept."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.{BEST}{leaf}"


def is_best(name: str) -> bool:
    """Test whether a native name belongs to the copy taken at a head's best validation."""
    return name.rpartition(".")[2].startswith(BEST)


def each(function: Callable[[Any, Arrays], Any]) -> Callable[[Any, Arrays], Any]:
    """Map a loss or a measure over heads: outputs `[b, g, ...]` give `[b, g]` of each."""
    return jax.vmap(function, in_axes=(1, None), out_axes=1)


def of_head(measured: Mapping[str, np.ndarray], head: int) -> dict[str, np.ndarray]:
    """One head's share of what was measured of `each`."""
    return {name: value[:, head] for name, value in measured.items()}


def at_their_best(arrays: Arrays) -> Arrays:
    """Replace every head's arrays by their values at its best validation."""
    return {name: arrays.get(best_name(name), value) for name, value in arrays.items()}


@dataclasses.dataclass(kw_only=True)
class GridProgress:
    """State of the loop over heads that train side by side; saved with every checkpoint.

    Attributes:
      heads: progress of each head.
      seconds: training time so far of all heads together, over all restarts.
      best_step: always None, because the newest checkpoint holds every head's best values.
    """

    heads: list[Progress]
    seconds: float = 0.0
    best_step: int | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any], heads: int) -> "GridProgress":
        """Invert `dataclasses.asdict`; an empty mapping gives `heads` heads before training."""
        held = values.get("heads", [{}] * heads)
        return cls(**{**values, "heads": [Progress(**head) for head in held]})


@dataclasses.dataclass(kw_only=True)
class GridLoop(Loop):
    """Training loop for a state whose arrays have the head as their first axis.

    Attributes:
      names: names of the heads; scalars are written as "<name>/val/accuracy".
      validate: function that computes validation metrics of each head.
    """

    names: Sequence[str]
    validate: Callable[[Arrays], Sequence[Mapping[str, float]]]  # type: ignore[assignment]
    progress: GridProgress  # type: ignore[assignment]

    def training_row(self, scalars: Mapping[str, Any]) -> dict[str, float]:
        """Scalars of every head to write for one training step, by name."""
        return {
            f"{head}/train/{name}": float(value[i])
            for name, value in scalars.items()
            for i, head in enumerate(self.names)
        }

    def evaluate(self, state: TrainState, done: int) -> TrainState:
        """Measure all heads; keep the improved ones and lower the rate of those on a plateau."""
        heads = self.progress.heads
        measured = self.validate(state.params | state.followers | self.frozen)
        row = {
            f"{head}/val/{name}": value
            for head, values in zip(self.names, measured, strict=True)
            for name, value in values.items()
        }
        self.writer.write_scalars(done, row)
        values = [values[self.metric] for values in measured]
        improved = np.array(
            [
                head.improve(self.score, value, done, self.progress.seconds)
                for head, value in zip(heads, values, strict=True)
            ]
        )
        if improved.any():
            kept = keep(state.params, state.followers, improved)
            state = dataclasses.replace(state, followers=kept)
        if self.plateaus(done):
            dropped = [
                not better and head.wait(self.config.optim)
                for head, better in zip(heads, improved, strict=True)
            ]
            if any(dropped):
                state = self.dropped(state, [head.lr_scale for head in heads])
        top = max(range(len(heads)), key=lambda i: self.score(values[i]))
        self.report.say(
            f"epoch {done / self.plan.steps_per_epoch:.1f}  step {done}"
            f"  val {self.metric} {values[top]:.4f} ({self.names[top]})"
            f"  {improved.sum()} of {len(heads)} heads at their best so far"
        )
        return state


def keep(params: Arrays, followers: Arrays, improved: np.ndarray) -> Arrays:
    """Copy the parameters of `improved` heads (bool `[g]`) into the best values in `followers`."""
    kept = dict(followers)
    for name, value in params.items():
        old = followers[best_name(name)]
        which = improved.reshape(-1, *(1,) * (value.ndim - 1))
        kept[best_name(name)] = jax.device_put(jnp.where(which, value, old), old.sharding)
    return kept
