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
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import ArrayLike

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.data.labels import Label
from fmi_jax.errors import UsageError, unknown_name
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.intervals import BOOTSTRAP, Interval, scaled
from fmi_jax.tasks.operating import Rule
from fmi_jax.tasks.pooling import Pooled
from fmi_jax.tasks.weighted import resample
from fmi_jax.types import Rows

Measured = Mapping[str, np.ndarray]
"""What was measured of each image of a split, by name, in the order of its rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """Facts about a metric.

    Attributes:
      label: name in tables.
      higher_is_better: True if larger values are better.
      bounds: smallest and largest possible value.
      ordinal: True if it is for classes in an order.
    """

    label: str
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    ordinal: bool = False

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
      ordinal: True if the classes are in an order; without one, metrics that need it are absent.
      name: task's name in manifests and results.
      label: form of the labels.
      exclusive: True if there is one class for each label, by a softmax of the logits; False if any
        number, by a sigmoid each.
      metrics: every metric by name, in the order of tables.
      selects: metric that selects the best checkpoint where a data set has none of its own.
      file: name of the file in a run's folder that `keep` writes.
      shown: metrics of the table on the console.
      left_out: metrics that a page does not show.
      per_class: label of each metric of a single class, in the order of tables.
      of_classes: heading of the table of the classes.
      pools: names of the rules by which `pooled` makes one case of a group's images.
    """

    classes: tuple[str, ...] = ()
    class_groups: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    ordinal: bool = True
    label: ClassVar[Label]
    exclusive: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]]
    selects: ClassVar[str]
    file: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]
    left_out: ClassVar[tuple[str, ...]] = ()
    per_class: ClassVar[Mapping[str, str]]
    of_classes: ClassVar[str] = "Each class"
    pools: ClassVar[tuple[str, ...]] = ()

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
        return tuple(
            name for name, metric in self.metrics.items() if self.ordinal or not metric.ordinal
        )

    def metric(self, name: str) -> Metric:
        """Look a metric of this data set up; an unknown name raises `UsageError`."""
        found = self.find_metric(name) if name in self.metric_names else None
        if found is None:
            raise unknown_name(f"metric for a {self.name} task", name, self.metric_names)
        return found

    def objective(self, config: LossConfig, counts: Sequence[float], total: ArrayLike) -> Objective:
        """Make the objective of a training, which is the task's own loss by default.

        Args:
          config: options of the loss.
          counts: training images of each class.
          total: training images whose label of a class is known, one number or one for each.

        Raises:
          UsageError: the task has no such option.
        """
        if config != LossConfig():
            raise UsageError(
                f"loss: its options are for classification and masks, and this is a {self.name}"
                " task; expected the defaults."
            )
        return self

    @abc.abstractmethod
    def measure(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Reduce the network's outputs to what each image contributes to the metrics."""

    def on_host(self, measured: Measured, metric: str = "") -> Measured:
        """Reduce further, on the host, what was measured of the images of a batch.

        Args:
          measured: result of `measure`, without padding.
          metric: the one metric that is asked for; empty: all.
        """
        return measured

    @abc.abstractmethod
    def checked(self, measured: Measured) -> Measured:
        """Convert to the types that `values` takes; `UserError` names an image that is wrong."""

    @abc.abstractmethod
    def values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute every metric for each weighting of the images; undefined ones are NaN."""

    def all_values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute `values`, and metrics of single classes by names such as "recall[Mild]"."""
        return self.values(measured, weights)

    def exact(self, measured: Measured, member: Int[np.ndarray, "n"]) -> dict[str, Interval]:
        """Compute the intervals that need no bootstrap, by the names of `all_values`."""
        return {}

    @abc.abstractmethod
    def kinds(self, measured: Measured) -> Bool[np.ndarray, "n m"]:
        """Kinds of images of which a resample needs one each, so that every metric has a value."""

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

    def outcomes(
        self, measured: Measured
    ) -> tuple[Float[np.ndarray, "n k"], Bool[np.ndarray, "n k"]]:
        """Probabilities of classes that the network stated, and whether each came true.

        A probability is NaN where that is not known.

        None where the task keeps no probabilities.
        """
        return np.zeros((0, 0)), np.zeros((0, 0), bool)

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
        how: "Resampling",
    ) -> "Resamples":
        """Compute every metric on bootstrap resamples, those of single classes too.

        Args:
          measured: per-image measurements, as for `evaluate`.
          how: number of resamples, and what is drawn.
        """
        measured = self.checked(measured)
        count = len(next(iter(measured.values())))
        member, redrawn = members(how.groups, count), 0
        drawn: dict[str, list[np.ndarray]] = {}
        for times, anew in resample(
            self.kinds(measured), member, how.samples, how.seed, size=count
        ):
            redrawn += anew
            for name, value in self.all_values(measured, times[:, member]).items():
                drawn.setdefault(name, []).append(value)
        return Resamples({name: np.concatenate(parts) for name, parts in drawn.items()}, redrawn)

    def pooled(self, measured: Measured, groups: Sequence[str], rule: str) -> Pooled:
        """Pool the images of each group into one case.

        Args:
          measured: per-image measurements, as for `evaluate`.
          groups: patient, lesion or study of each image.
          rule: one of `pools`.
        """
        raise self.no_pooling(rule)

    def no_pooling(self, rule: str) -> UsageError:
        """Word the refusal of a rule that is none of `pools`."""
        return UsageError(
            f"group_pooling={rule!r} is no rule for a {self.name} task: expected"
            f" {' or '.join(map(repr, (*self.pools, '')))}."
        )

    def chosen(self, measured: Measured, rule: Rule) -> dict[str, Any]:
        """Choose on the validation images what `Evaluation.choices` keeps, as JSON values."""
        return {}

    def assessed(
        self,
        evaluation: Evaluation,
        measured: Measured,
        choices: Mapping[str, Any],
        rule: Rule,
        how: "Resampling",
    ) -> Evaluation:
        """Add calibration, and decisions at what was `chosen`, to an evaluation.

        Args:
          evaluation: metrics of `measured`, from `evaluate`.
          choices: choices of `chosen` by `rule`.
          measured: measurements of every image.
          how: number of resamples, their seed, and the groups that are drawn whole.
        """
        return evaluation

    def bounded(
        self,
        evaluation: Evaluation,
        measured: Measured,
        how: "Resampling",
    ) -> Evaluation:
        """Add a 95% interval to every metric of an evaluation that has one.

        Args:
          evaluation: metrics of `measured`, from `evaluate`.
          measured: measurements of every image.
          how: number of resamples, their seed, and the groups that are drawn whole; 0 resamples
            give no intervals.
        """
        if how.samples == 0:
            return evaluation
        resampled = self.bootstrap(measured, how)
        measured = self.checked(measured)
        found = self.exact(measured, members(how.groups, evaluation.count))
        for name, value in evaluation.named().items():
            # The metric of a class ("recall[Mild]") has the bounds of the metric.
            spread, metric = resampled.values.get(name), self.find_metric(name.partition("[")[0])
            if name not in found and spread is not None:
                bounds = (0.0, 1.0) if metric is None else metric.bounds
                found[name] = scaled(value, float(spread.std()), bounds, BOOTSTRAP)
        found = {name: one for name, one in found.items() if one.defined}
        return dataclasses.replace(
            evaluation,
            intervals={name: (one.low, one.high) for name, one in found.items()},
            methods={name: one.method for name, one in found.items()},
            redrawn=resampled.redrawn,
        )


class Resampling(NamedTuple):
    """Bootstrap of a split.

    Attributes:
      samples: number of resamples; 0: none.
      seed: random seed; the same seed gives the same resamples.
      groups: patient, lesion or study of each image. Images of one group are not independent, so
        whole groups are drawn; None draws single images.
    """

    samples: int
    seed: int
    groups: Sequence[str] | None = None


class Resamples(NamedTuple):
    """Metrics on bootstrap resamples.

    Attributes:
      values: metric on each resample by name, `[s]`; that of a class by "recall[Mild]".
      redrawn: number of resamples that lacked a class and were drawn again.
    """

    values: Mapping[str, Float[np.ndarray, "s"]]
    redrawn: int


def members(groups: Sequence[str] | None, count: int) -> Int[np.ndarray, "n"]:
    """Number the groups of `count` images; without groups every image is its own."""
    names = np.arange(count) if groups is None else np.asarray(groups)
    return np.unique(names, return_inverse=True)[1]
