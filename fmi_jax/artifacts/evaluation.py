"""What was measured on one split: metrics, their intervals, calibration and decisions."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Agreement of the probabilities of a class with its frequency.

    Attributes:
      error: expected calibration error, in 15 bins of equal width.
      interval: 95% interval of `error`.
      ideal: mean error that a perfectly calibrated model with these probabilities would show.
      scaled: error after the temperature of the validation images; NaN without one.
      brier: mean squared error of the probabilities.
      slope, intercept: logistic regression of the class on the log-odds; 1 and 0 are perfect.
    """

    error: float
    interval: tuple[float, float]
    ideal: float
    scaled: float
    brier: float
    slope: float
    intercept: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Invert `dataclasses.asdict`, None being NaN."""
        ends = {"interval": tuple(map(or_nan, values["interval"]))}
        return cls(**{name: or_nan(value) for name, value in {**values, **ends}.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Decisions on a class at a threshold that was chosen on the validation images.

    Attributes:
      threshold: lowest probability that is called positive.
      values: "sensitivity", "specificity", "ppv" and "npv" on the images.
      intervals: 95% intervals of `values`; one that the images do not give is left out.
      prevalence: another share of positives; NaN: none was asked for.
      ppv, npv: predictive values at `prevalence`, from sensitivity and specificity.
    """

    threshold: float
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    prevalence: float
    ppv: float
    npv: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Invert `dataclasses.asdict`, None being NaN."""
        parts = {
            "values": {name: or_nan(value) for name, value in values["values"].items()},
            "intervals": {name: (low, high) for name, (low, high) in values["intervals"].items()},
        }
        numbers = ("threshold", "prevalence", "ppv", "npv")
        return cls(**parts, **{name: or_nan(values[name]) for name in numbers})


class Subgroup(NamedTuple):
    """Images of one subgroup.

    Attributes:
      size: number of images.
      value: metric of these images.
      interval: its 95% interval; NaN if there is none.
    """

    size: int
    value: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Subgroups:
    """A metric by the subgroups of one column.

    Attributes:
      column: name of the column.
      metric: name of the metric.
      levels: subgroups that are large enough, by name.
      worst: subgroup with the worst metric.
      gap: distance between the best and the worst; NaN with fewer than two subgroups.
      interval: 95% interval of the gap between these two.
      p: p-value of no difference, adjusted over the columns.
      detectable: gap that this test set would have detected in 4 of 5 cases.
      small: subgroups with too few images.
    """

    column: str
    metric: str
    levels: dict[str, Subgroup]
    worst: str
    gap: float
    interval: tuple[float, float]
    p: float
    detectable: float
    small: tuple[str, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Invert `dataclasses.asdict`, None being NaN."""
        levels = {
            name: Subgroup(size, or_nan(value), (or_nan(ends[0]), or_nan(ends[1])))
            for name, (size, value, ends) in values["levels"].items()
        }
        low, high = values["interval"]
        parts = {
            "levels": levels,
            "interval": (or_nan(low), or_nan(high)),
            "small": tuple(values["small"]),
        }
        return cls(**{name: or_nan(value) for name, value in {**values, **parts}.items()})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What was measured on one split.

    Attributes:
      task: task's name.
      classes: names of the classes, in the order of the network's outputs.
      count: number of images, or of groups where the images of each are pooled.
      values: aggregate metrics of the task by name.
      per_class: metrics of each class by its name.
      confusion: images by true (row) and predicted (column) class, int64 `[k, k]`; for a
        multi-label task the table of each class, `[k, 2, 2]`.
      undefined: names of the metrics that are NaN: "roc_auc", "recall[Mild]".
      intervals: 95% confidence intervals by metric, named as in `undefined`; a metric for which the
        images give none is left out; empty: not computed.
      methods: name of the method of each interval.
      redrawn: number of bootstrap resamples that lacked a class and were drawn again.
      calibration: calibration by class; empty: not assessed.
      choices: values that the validation images chose and these images were measured with:
        "temperature", and "thresholds" by class.
      decisions: decisions at these thresholds by class.
      subgroups: metric that selects by the subgroups of each column of the data.
    """

    task: str
    classes: tuple[str, ...]
    count: int
    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    confusion: np.ndarray
    undefined: tuple[str, ...]
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    methods: dict[str, str] = dataclasses.field(default_factory=dict)
    redrawn: int = 0
    calibration: dict[str, Calibration] = dataclasses.field(default_factory=dict)
    choices: dict[str, Any] = dataclasses.field(default_factory=dict)
    decisions: dict[str, Decision] = dataclasses.field(default_factory=dict)
    subgroups: tuple[Subgroups, ...] = ()

    def named(self) -> dict[str, float]:
        """Every metric by its name in `undefined` and `intervals`."""
        return _named(self.values, self.per_class)

    def to_json(self) -> dict[str, Any]:
        """The evaluation as strict JSON values: NaN becomes None."""
        return strict(
            {
                "task": self.task,
                "classes": self.classes,
                "count": self.count,
                "values": self.values,
                "intervals": self.intervals,
                "methods": self.methods,
                "redrawn": self.redrawn,
                "calibration": _as_dicts(self.calibration),
                "choices": self.choices,
                "decisions": _as_dicts(self.decisions),
                "subgroups": [dataclasses.asdict(one) for one in self.subgroups],
                "per_class": self.per_class,
                "confusion": self.confusion.tolist(),
                "undefined": self.undefined,
            }
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            task=values["task"],
            classes=tuple(values["classes"]),
            count=values["count"],
            values={name: or_nan(value) for name, value in values["values"].items()},
            intervals={
                name: (or_nan(low), or_nan(high))
                for name, (low, high) in values["intervals"].items()
            },
            methods=dict(values["methods"]),
            redrawn=values["redrawn"],
            subgroups=tuple(Subgroups.from_json(one) for one in values["subgroups"]),
            calibration={
                name: Calibration.from_json(one) for name, one in values["calibration"].items()
            },
            choices=dict(values["choices"]),
            decisions={name: Decision.from_json(one) for name, one in values["decisions"].items()},
            per_class={
                name: {metric: or_nan(value) for metric, value in row.items()}
                for name, row in values["per_class"].items()
            },
            confusion=np.asarray(values["confusion"], np.int64),
            undefined=tuple(values["undefined"]),
        )


def undefined_in(
    values: Mapping[str, float], per_class: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    """List the metrics that are NaN, for `Evaluation.undefined`."""
    return tuple(name for name, value in _named(values, per_class).items() if math.isnan(value))


def named_columns(
    classes: Sequence[str], per_class: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Name the columns of metrics `[s, k]` of the classes as `Evaluation.named` does."""
    return {
        f"{metric}[{name}]": values[:, c]
        for c, name in enumerate(classes)
        for metric, values in per_class.items()
        if metric != "support"
    }


def _named(
    values: Mapping[str, float], per_class: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    of_classes = {
        f"{metric}[{name}]": value
        for name, row in per_class.items()
        for metric, value in row.items()
        if metric != "support"
    }
    return {**values, **of_classes}


def or_nan(value: Any) -> Any:
    """Invert `strict` of a number."""
    return math.nan if value is None else value


def _as_dicts(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dataclasses.asdict(one) for name, one in parts.items()}


def strict(value: Any) -> Any:
    """Convert to strict JSON values: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
