"""Validations of a training: the best step, and drops of the learning rate."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fmi_jax.settings import BaseConfig, OptimConfig, TrainConfig


@dataclasses.dataclass(kw_only=True)
class Track:
    """Validations of one network.

    Attributes:
      best_step: steps done at the best validation; None before the first validation.
      best_value: validation metric at `best_step`.
      best_seconds: training time up to `best_step`, in seconds, over all restarts.
      bad_evaluations: validations since the last improvement (plateau schedule).
      lr_scale: factor on the learning rate (plateau schedule).
      stale: validations in a row without improvement, from the end of the warm-up.
    """

    best_step: int | None = None
    best_value: float | None = None
    best_seconds: float = 0.0
    bad_evaluations: int = 0
    lr_scale: float = 1.0
    stale: int = 0

    def improve(
        self, score: Callable[[float], float], value: float, step: int, seconds: float
    ) -> bool:
        """Record a validation; returns whether it is the best so far.

        An equal value is not an improvement. An undefined value (NaN) is the best only if it is
        the first.
        """
        best = self.best_value
        if best is not None and score(value) <= score(best):
            return False
        self.best_step, self.best_value, self.best_seconds = step, value, seconds
        self.bad_evaluations = 0
        return True

    def wait(self, config: OptimConfig) -> bool:
        """Count a validation without improvement; returns whether the learning rate drops now.

        Same rule as torch's ReduceLROnPlateau with threshold 0.
        """
        self.bad_evaluations += 1
        if self.bad_evaluations <= config.plateau_patience:
            return False
        self.bad_evaluations = 0
        self.lr_scale *= config.plateau_factor
        return True


@dataclasses.dataclass(kw_only=True)
class Selection:
    """State of the loop beside the arrays; saved with every checkpoint.

    Attributes:
      metric: name of the validation metric that selects; empty: the last step is kept.
      score: function that gives the metric's value a sign such that more is better.
      names: names of the heads that train side by side; empty: a single network.
      tracks: validations of each head, or of the network.
      seconds: training time so far, over all restarts.
    """

    metric: str
    score: Callable[[float], float]
    names: Sequence[str] = ()
    tracks: list[Track] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.tracks = self.tracks or [Track() for _ in self.names or ("",)]

    @property
    def best_step(self) -> int | None:
        """Step whose checkpoint has the best arrays; None if the newest checkpoint has them.

        That is the one to keep of heads, each of which carries its best values along.
        """
        return None if self.names else self.tracks[0].best_step

    def to_json(self) -> dict[str, Any]:
        """Convert to what a checkpoint holds."""
        tracks = [dataclasses.asdict(track) for track in self.tracks]
        if not self.names:
            return {**tracks[0], "seconds": self.seconds}
        return {"heads": tracks, "seconds": self.seconds, "best_step": None}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        known = [field.name for field in dataclasses.fields(Track)]
        # Heads of earlier versions have a time of their own.
        self.tracks = [
            Track(**{name: value for name, value in track.items() if name in known})
            for track in values.get("heads", [values])
        ]
        self.seconds = values["seconds"]

    def named(self, kind: str, values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Name the scalars of each head, or of the network, as they are written."""
        prefixes = [f"{name}/{kind}/" for name in self.names] or [f"{kind}/"]
        return {
            prefix + name: value
            for prefix, some in zip(prefixes, values, strict=True)
            for name, value in some.items()
        }

    def training_row(self, scalars: Mapping[str, Any]) -> dict[str, float]:
        """Scalars to write for one training step, by name."""
        return self.named(
            "train",
            [
                {name: float(value[i] if self.names else value) for name, value in scalars.items()}
                for i in range(len(self.tracks))
            ],
        )

    def improve(self, values: Sequence[Mapping[str, float]], step: int) -> np.ndarray:
        """Record a validation of each head; returns which are at their best, bool `[g]`."""
        return np.array(
            [
                track.improve(self.score, each[self.metric], step, self.seconds)
                for track, each in zip(self.tracks, values, strict=True)
            ]
        )

    def wait(self, config: OptimConfig, improved: np.ndarray) -> bool:
        """Count the heads that did not improve; returns whether a learning rate drops now."""
        dropped = [
            not better and track.wait(config)
            for track, better in zip(self.tracks, improved, strict=True)
        ]
        return any(dropped)

    def count_stale(self, improved: np.ndarray) -> None:
        """Count the validations in a row in which each head did not improve."""
        for track, better in zip(self.tracks, improved, strict=True):
            track.stale = 0 if better else track.stale + 1

    def out_of_patience(self, config: TrainConfig) -> bool:
        """Test whether no head has improved for longer than `patience`."""
        return 0 < config.patience < min(track.stale for track in self.tracks)

    def ended(self, config: BaseConfig) -> bool:
        """Test whether nothing more is to be learned, by the learning rates or by `patience`."""
        floor = config.optim.plateau_floor
        dropped = all(track.lr_scale < floor for track in self.tracks)
        return dropped or self.out_of_patience(config.train)

    @property
    def lr_scale(self) -> Any:
        """Factor on the learning rate, or one for each head."""
        scales = [track.lr_scale for track in self.tracks]
        return scales if self.names else scales[0]

    def line(self, values: Sequence[Mapping[str, float]], improved: np.ndarray) -> str:
        """Describe a validation for the console."""
        found = [each[self.metric] for each in values]
        if not self.names:
            return f"val {self.metric} {found[0]:.4f}{'  best so far' if improved[0] else ''}"
        top = max(range(len(found)), key=lambda i: self.score(found[i]))
        return (
            f"val {self.metric} {found[top]:.4f} ({self.names[top]})"
            f"  {improved.sum()} of {len(found)} heads at their best so far"
        )
