"""Metrics of a whole split, and how sure they are.

Every metric is computed in float64 from the logits and labels of all images, never averaged
over batches and never rounded. One implementation serves a point estimate (each image counted
once) and a thousand bootstrap resamples (each image counted as often as it was drawn), so the
two cannot disagree: `weighted_metrics`, which the tests hold against scikit-learn.

A metric that the data do not define is NaN and named, never 0 or 0.5 (docs/protocols.md, B24, B25):

* the recall, AUROC and average precision of a class without images, the precision of a class
  that was never predicted, kappa where labels and predictions are one and the same class;
* a macro average runs over the classes (for one-vs-one AUROC: the pairs of classes) that have a
  value. The exception is macro precision, where a class that has images and was never predicted
  counts as 0, as it does in the study and in scikit-learn: leaving it out would reward ignoring it.

Labels are trained on as they are and evaluated as yes or no: a soft label of a multi-label task
counts as positive from one half on (`hard_labels`).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from fmi_jax.errors import UserError, unknown_name
from fmi_jax.tasks.weighted_metrics import log_probabilities, measure
from fmi_jax.types import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """What is known of a metric before it is measured.

    Attributes:
      labels: how tables name it, for each task that has it.
      higher_is_better: its direction.
    """

    labels: Mapping[Task, str]
    higher_is_better: bool = True


def _softmax_tasks(label: str) -> dict[Task, str]:
    return {Task.BINARY: label, Task.MULTICLASS: label}


def _all_tasks(label: str) -> dict[Task, str]:
    return dict.fromkeys(Task, label)


METRICS: Mapping[str, Metric] = {
    "quadratic_kappa": Metric(labels=_softmax_tasks("Quadratic weighted kappa")),
    "cohen_kappa": Metric(labels=_softmax_tasks("Cohen's kappa")),
    "accuracy": Metric(
        labels=_softmax_tasks("Accuracy") | {Task.MULTILABEL: "Subset accuracy"},
    ),
    "balanced_accuracy": Metric(labels=_softmax_tasks("Balanced accuracy")),
    "precision": Metric(labels=_all_tasks("Macro precision")),
    "recall": Metric(labels=_all_tasks("Macro recall")),
    "f1": Metric(labels=_all_tasks("Macro F1")),
    "roc_auc": Metric(
        labels={
            Task.BINARY: "AUROC",
            Task.MULTICLASS: "AUROC (macro, one-vs-one)",
            Task.MULTILABEL: "AUROC (macro)",
        }
    ),
    "roc_auc_ovr": Metric(labels={Task.MULTICLASS: "AUROC (macro, one-vs-rest)"}),
    "average_precision": Metric(
        labels={
            Task.BINARY: "Average precision",
            Task.MULTICLASS: "Average precision (macro, one-vs-rest)",
        }
    ),
    "mAP": Metric(labels={Task.MULTILABEL: "Mean average precision"}),
    "loss": Metric(
        labels=_softmax_tasks("Cross-entropy") | {Task.MULTILABEL: "Binary cross-entropy"},
        higher_is_better=False,
    ),
}
"""Every metric by name, in the order of tables. Names are the study's.

A data set with `class_groups` has one more for each group: see `describe`.
"""


GROUP_PREFIX = "roc_auc_"
"""What the name of the metric of a group of classes starts with."""

PER_CLASS: Mapping[str, str] = {
    "support": "Images",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
    "f1": "F1",
    "roc_auc": "AUROC",
    "average_precision": "Average precision",
}
"""What is measured of each class against the rest, with its name in tables."""


def describe(name: str) -> Metric:
    """What is known of a metric: of `METRICS`, or `roc_auc_<group>` for a group of classes.

    The latter is the mean AUROC of these classes, one against the rest. An unknown name raises
    `UsageError`.
    """
    if name in METRICS:
        return METRICS[name]
    if not name.startswith(GROUP_PREFIX):
        raise unknown_name("metric", name, METRICS)
    group = name.removeprefix(GROUP_PREFIX)
    return Metric(labels=_all_tasks(f"AUROC (macro, {group} classes)"))


def check_metric(name: str, task: Task, class_groups: Iterable[str] = ()) -> None:
    """Raise `UsageError` unless `name` is a metric of `task`, or of one of the `class_groups`."""
    valid = [metric for metric, spec in METRICS.items() if task in spec.labels]
    valid += [GROUP_PREFIX + group for group in class_groups]
    if name not in valid:
        raise unknown_name(f"metric for a {task} task", name, valid)


def selection_score(name: str, value: float) -> float:
    """`value` of metric `name` such that more is better; -inf where it is undefined."""
    if math.isnan(value):
        return -math.inf
    return value if describe(name).higher_is_better else -value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What was measured on one split.

    Attributes:
      task: what the labels mean.
      classes: their names, in the order of the logits.
      count: number of images.
      values: aggregate metrics; the keys are those of `METRICS` that `task` has, and
        `roc_auc_<group>` for each group of classes.
      per_class: for each class, the metrics of `PER_CLASS`, one against the rest.
      confusion: images by true (row) and predicted (column) class, int64 `[k, k]`; for a
        multi-label task the table of each class, `[k, 2, 2]`.
      undefined: names of the metrics that are NaN: "roc_auc", "recall[Mild]".
      intervals: 95% confidence intervals of `values` (`bootstrap`); empty: not computed.
    """

    task: Task
    classes: tuple[str, ...]
    count: int
    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    confusion: np.ndarray
    undefined: tuple[str, ...]
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The evaluation as strict JSON values: NaN becomes None."""
        return {
            "task": str(self.task),
            "classes": list(self.classes),
            "count": self.count,
            "values": {name: _or_none(value) for name, value in self.values.items()},
            "intervals": {
                name: [_or_none(low), _or_none(high)]
                for name, (low, high) in self.intervals.items()
            },
            "per_class": {
                name: {metric: _or_none(value) for metric, value in row.items()}
                for name, row in self.per_class.items()
            },
            "confusion": self.confusion.tolist(),
            "undefined": list(self.undefined),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            task=Task(values["task"]),
            classes=tuple(values["classes"]),
            count=values["count"],
            values={name: _or_nan(value) for name, value in values["values"].items()},
            intervals={
                name: (_or_nan(low), _or_nan(high))
                for name, (low, high) in values["intervals"].items()
            },
            per_class={
                name: {metric: _or_nan(value) for metric, value in row.items()}
                for name, row in values["per_class"].items()
            },
            confusion=np.asarray(values["confusion"], np.int64),
            undefined=tuple(values["undefined"]),
        )


def with_intervals(
    evaluation: Evaluation, intervals: Mapping[str, tuple[float, float]]
) -> Evaluation:
    """The same evaluation with the intervals that `bootstrap` gave."""
    return dataclasses.replace(evaluation, intervals=dict(intervals))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def probabilities(task: Task, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Class probabilities in float64: softmax over the classes, or a sigmoid for each."""
    return np.exp(log_probabilities(task, logits))


def logits_of(task: Task, probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Logits whose `probabilities` these are, in float64: infinite for 0 and 1.

    So what gives probabilities (kNN) is measured without a second activation on top of them.
    """
    p = np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(p) - np.log1p(-p) if task is Task.MULTILABEL else np.log(p)


def hard_labels(task: Task, labels: np.ndarray) -> np.ndarray:
    """Labels as they are evaluated, int64: soft ones are positive from one half on."""
    if task is Task.MULTILABEL:
        labels = np.asarray(labels) >= 0.5
    return labels.astype(np.int64)


def evaluate(
    task: Task,
    logits: Float[np.ndarray, "n k"],
    labels: np.ndarray,
    classes: Sequence[str],
    class_groups: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """Measure a whole split.

    Args:
      task: what the labels mean.
      logits: scores of each image. Probabilities (kNN) are passed through `logits_of`, and no
        second activation distorts them then (docs/protocols.md, B11 and B12).
      labels: class index `[n]`, or 0 to 1 `[n, k]` for a multi-label task (`hard_labels`).
      classes: names of the `k` classes.
      class_groups: classes by name of the group, for `roc_auc_<group>`: the mean AUROC of these
        classes, one against the rest.

    Raises:
      UserError: no images, a label that is no class, or logits that are not a number.
    """
    logits, labels = _checked(task, logits, labels, classes)
    members = _members(classes, class_groups)
    measured = measure(task, logits, labels, np.ones((1, len(logits))), members)
    values = {name: float(value[0]) for name, value in measured.values.items()}
    per_class = {
        name: {
            metric: int(value[0, c]) if metric == "support" else float(value[0, c])
            for metric, value in measured.per_class.items()
        }
        for c, name in enumerate(classes)
    }
    undefined = [name for name, value in values.items() if math.isnan(value)]
    undefined += [
        f"{metric}[{name}]"
        for name, row in per_class.items()
        for metric, value in row.items()
        if math.isnan(value)
    ]
    return Evaluation(
        task=task,
        classes=tuple(classes),
        count=len(logits),
        values=values,
        per_class=per_class,
        confusion=np.rint(measured.confusion[0]).astype(np.int64),
        undefined=tuple(undefined),
    )


def bootstrap(
    task: Task,
    logits: Float[np.ndarray, "n k"],
    labels: np.ndarray,
    classes: Sequence[str],
    samples: int,
    seed: int,
    groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[float, float]]:
    """95% percentile bootstrap intervals of the aggregate metrics.

    Args:
      task, logits, labels, classes, class_groups: as in `evaluate`.
      samples: number of resamples; 0 gives no intervals.
      seed: decides the resamples; the same seed gives the same intervals.
      groups: patient, lesion or study of each image. Images of one group are not independent,
        so whole groups are drawn; None draws single images.

    Returns:
      `(low, high)` by metric; resamples that leave a metric undefined do not count for it.
    """
    if samples == 0:
        return {}
    logits, labels = _checked(task, logits, labels, classes)
    members = _members(classes, class_groups)
    if groups is None:
        member = np.arange(len(logits))
    else:
        member = np.unique(np.asarray(groups), return_inverse=True)[1]
    num_groups = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(logits))  # resamples at a time: about 16 MB a table
    drawn: dict[str, list[np.ndarray]] = {}
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        draws = rng.integers(num_groups, size=(size, num_groups))
        draws += num_groups * np.arange(size)[:, None]
        times = np.bincount(draws.ravel(), minlength=size * num_groups)
        weights = times.reshape(size, num_groups)[:, member].astype(np.float64)
        for name, value in measure(task, logits, labels, weights, members).values.items():
            drawn.setdefault(name, []).append(value)
    intervals = {}
    for name, parts in drawn.items():
        value = np.concatenate(parts)
        value = value[~np.isnan(value)]
        low, high = np.percentile(value, (2.5, 97.5)) if len(value) else (math.nan, math.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def _checked(
    task: Task, logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits as float64 and labels as int64, or an error that says what is wrong with them."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    expected = logits.shape if task is Task.MULTILABEL else logits.shape[:1]
    if logits.ndim != 2 or logits.shape[1] != len(classes) or labels.shape != expected:
        raise ValueError(
            f"logits {logits.shape} and labels {labels.shape} do not fit {len(classes)} classes"
            f" of a {task} task"
        )
    if task is Task.BINARY and len(classes) != 2:
        raise ValueError(f"a binary task has 2 classes, not {len(classes)}")
    if not len(logits):
        raise UserError("there are no images to evaluate: expected a split with at least one.")
    if task is Task.MULTILABEL:
        wrong, expected = ~((labels >= 0) & (labels <= 1)), "a value from 0 to 1"
    else:
        wrong = ~np.isin(labels, np.arange(len(classes)))
        expected = f"a whole number from 0 to {len(classes) - 1}"
    if wrong.any():
        row = int(np.argwhere(wrong)[0, 0])
        raise UserError(
            f"label {labels[wrong][0]} of image {row} of the split is no class:"
            f" expected {expected}."
        )
    impossible = np.isnan(log_probabilities(task, logits)).any(axis=1)
    if impossible.any():
        raise UserError(
            f"the logits of {int(impossible.sum())} images (first: image"
            f" {int(impossible.argmax())} of the split) are not numbers: the model has diverged."
        )
    return logits, hard_labels(task, labels)


def _members(
    classes: Sequence[str], class_groups: Mapping[str, Sequence[str]] | None
) -> dict[str, list[int]]:
    """Index of every class of a group, by the name of its metric."""
    names = list(classes)
    return {
        GROUP_PREFIX + group: [names.index(name) for name in members]
        for group, members in (class_groups or {}).items()
    }
