"""What the labels of a data set mean: a loss, what is measured of an image, and metrics.

A task is one file. Training asks it for the loss, evaluation for what one image contributes
(`measure`, inside the jitted step), and everything else for metrics of weighted images: a point
estimate counts each image once, a bootstrap resample as often as it was drawn, so the two cannot
disagree. What is not per image, such as patients, stands in `Rows`.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from fmi_jax.artifacts.result import Evaluation
from fmi_jax.data.labels import Label
from fmi_jax.errors import UsageError, unknown_name
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.weighted import draw_times, interval
from fmi_jax.types import Rows

Measured = Mapping[str, np.ndarray]
"""What was measured of each image of a split, by name, in the order of its rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """Facts about a metric.

    Attributes:
      label: name in tables.
      higher_is_better: True if larger values are better.
    """

    label: str
    higher_is_better: bool = True

    def score(self, value: float) -> float:
        """Turn a value around if need be, so that more is better; -inf where it is undefined."""
        if math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value


ImageOf = Callable[[int], UInt8[np.ndarray, "h w c"]]
"""Gives the image in a row of the test split, one channel or three."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image with its label and what was said of it.

    Attributes:
      id: image's id.
      label: true class; for a multi-label task all of them, joined by ", ".
      predicted: predicted class or classes.
      certainty: probability of the predicted class; for a multi-label task of the class that
        the prediction is most sure of, or most wrong about.
      correct: True if the two agree.
      image: the image as a data URI.
    """

    id: str
    label: str
    predicted: str
    certainty: float
    correct: bool
    image: str


class ExampleGroup(NamedTuple):
    """Examples under one heading of a page.

    Attributes:
      title: heading.
      note: choice and reading of the images, in words.
      examples: images.
    """

    title: str
    note: str
    examples: Sequence[Example]


class Objective(abc.ABC):
    """A loss that a network is trained by; it need not measure anything afterwards.

    Attributes:
      name: objective's name in messages.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Compute each image's loss from the network's outputs, for `make_train_step`."""


@dataclasses.dataclass(frozen=True)
class Task(Objective):
    """A task on a data set: a loss, and metrics of what the network says.

    Attributes:
      classes: name of each of the `k` classes.
      class_groups: classes that one more metric averages over, by the group's name.
      name: task's name in manifests and results.
      label: form of the labels.
      metrics: every metric by name, in the order of tables.
      selects: metric that selects the best checkpoint where a data set has none of its own.
      file: name of the file in a run's folder that `keep` writes.
      shown: metrics of the table on the console.
      per_class: label of each metric of a single class, in the order of tables.
      of_classes: heading of the table of the classes.
    """

    classes: tuple[str, ...] = ()
    class_groups: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    label: ClassVar[Label]
    metrics: ClassVar[Mapping[str, Metric]]
    selects: ClassVar[str]
    file: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]
    per_class: ClassVar[Mapping[str, str]]
    of_classes: ClassVar[str] = "Each class"

    @classmethod
    def suits(cls, label: Label, classes: Sequence[str]) -> bool:
        """Test whether labels of this form, with these classes, are for this task."""
        return label is cls.label

    @classmethod
    def find_metric(cls, name: str) -> Metric | None:
        """Find a metric by name, also one of a group of classes; None if there is none."""
        return cls.metrics.get(name)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that this data set has."""
        return tuple(self.metrics)

    def metric(self, name: str) -> Metric:
        """Look a metric of this data set up; an unknown name raises `UsageError`."""
        found = self.find_metric(name) if name in self.metric_names else None
        if found is None:
            raise unknown_name(f"metric for a {self.name} task", name, self.metric_names)
        return found

    def objective(self, config: LossConfig, counts: Sequence[float], total: int) -> Objective:
        """Make the objective of a training, which is the task's own loss by default.

        Args:
          config: options of the loss.
          counts: training images of each class.
          total: training images.

        Raises:
          UsageError: the task has no such option.
        """
        if config != LossConfig():
            raise UsageError(
                f"loss: its options are for classification, and this is a {self.name} task;"
                " expected the defaults."
            )
        return self

    @abc.abstractmethod
    def measure(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Reduce the network's outputs to what each image contributes to the metrics."""

    @abc.abstractmethod
    def checked(self, measured: Measured) -> Measured:
        """Convert to the types that `values` takes; `UserError` names an image that is wrong."""

    @abc.abstractmethod
    def values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute every metric for each weighting of the images; undefined ones are NaN."""

    @abc.abstractmethod
    def evaluate(self, measured: Measured) -> Evaluation:
        """Measure a whole split, each image counted once.

        Raises:
          UserError: no images, or an image whose label or outputs cannot be measured.
        """

    @abc.abstractmethod
    def keep(self, path: Path, measured: Measured, rows: Rows) -> None:
        """Write what was measured of each image to a file."""

    @abc.abstractmethod
    def read(self, path: Path) -> tuple[Measured, Rows]:
        """Read a file that `keep` wrote; `UserError` if it is missing or something else."""

    @abc.abstractmethod
    def truth(self, measured: Measured) -> np.ndarray:
        """Part of the measurements that the labels alone decide, `[n, ...]`."""

    def warning(self, evaluation: Evaluation) -> str:
        """Say what a reader must know before any of these numbers; empty: nothing."""
        return ""

    def outcomes(self, measured: Measured) -> tuple[Float[np.ndarray, "m"], np.ndarray]:
        """Probabilities that the network stated, and whether each came true, bool `[m]`.

        None where the task keeps no probabilities.
        """
        return np.zeros(0), np.zeros(0, bool)

    def figures(self, path: Path, evaluation: Evaluation) -> dict[str, tuple[str, bytes]]:
        """Draw the figures of a page, `{name: (words, PNG)}`.

        Args:
          path: file that `keep` wrote of the test images.
          evaluation: metrics of the test images.
        """
        return {}

    def examples(self, path: Path, image_of: ImageOf) -> list[ExampleGroup]:
        """Choose the test images of a page, from the file that `keep` wrote."""
        return []

    def resampled(
        self,
        measured: Measured,
        metric: str,
        member: Int[np.ndarray, "n"],
        times: Float[np.ndarray, "s g"],
    ) -> Float[np.ndarray, "s"]:
        """Compute one metric for many weightings of groups of images.

        Args:
          measured: per-image measurements, `checked`.
          metric: metric's name.
          member: each image's group.
          times: number of times that each group counts.
        """
        return self.values(measured, times[:, member])[metric]

    def bootstrap(
        self,
        measured: Measured,
        samples: int,
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> dict[str, tuple[float, float]]:
        """95% percentile bootstrap intervals of all metrics.

        Args:
          measured: per-image measurements, as for `evaluate`.
          samples: number of resamples; 0 gives no intervals.
          seed: random seed; the same seed gives the same intervals.
          groups: patient, lesion or study of each image. Images of one group are not
            independent, so whole groups are drawn; None draws single images.

        Returns:
          `(low, high)` by metric; resamples that leave a metric undefined do not count for it.
        """
        if samples == 0:
            return {}
        measured = self.checked(measured)
        count = len(next(iter(measured.values())))
        names = np.arange(count) if groups is None else np.asarray(groups)
        member = np.unique(names, return_inverse=True)[1]
        drawn: dict[str, list[np.ndarray]] = {}
        for times in draw_times(int(member.max()) + 1, samples, seed, size=count):
            for name, value in self.values(measured, times[:, member]).items():
                drawn.setdefault(name, []).append(value)
        return {name: interval(np.concatenate(parts)) for name, parts in drawn.items()}
