"""Computes the same metric from fewer rows, so that thousands of resamples take seconds.

`weighted_metrics.measure` weighs every image. Many images are the same to a metric: those with
equal true and predicted class, if it looks only at the confusion matrix; neighbours with one truth
in the order of the scores, if it looks only at that order (the AUROC counts pairs of two truths).
Their weights are added up first; the value is the same up to rounding.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from fmi_jax.tasks.weighted_metrics import log_probabilities, measure
from fmi_jax.types import Task

_OF_CONFUSION = (
    *("quadratic_kappa", "cohen_kappa", "accuracy", "balanced_accuracy"),
    *("precision", "recall", "f1"),
)
"""Metrics of a softmax task that follow from the confusion matrix."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Rows to be weighed by `measure`, and the images that each stands for.

    Attributes:
      task: task of these rows; one class against the rest is a multi-label task of one class.
      logits: logits of the rows, `[m, k]`.
      labels: labels of the rows, in the form that `measure` takes.
      row: row of every image, `[n]`.
    """

    task: Task
    logits: np.ndarray
    labels: np.ndarray
    row: np.ndarray


def problems(
    task: Task,
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "..."],
    metric: str,
    class_groups: Mapping[str, Sequence[int]],
) -> list[Problem]:
    """List the problems to measure for a metric; its value is the mean over the defined ones.

    Args:
      task, logits, labels, class_groups: arguments of `weighted_metrics.measure`.
      metric: name of the metric.
    """
    if task is not Task.MULTILABEL and metric in _OF_CONFUSION:
        return [_by_confusion(task, logits, labels)]
    truth = labels if task is Task.MULTILABEL else np.eye(logits.shape[1], dtype=np.int64)[labels]
    classes = class_groups.get(metric, ())
    if metric == "roc_auc" and task is not Task.MULTICLASS:
        classes = range(logits.shape[1]) if task is Task.MULTILABEL else (1,)
    elif metric == "roc_auc_ovr":
        classes = range(logits.shape[1])
    if not classes:
        rows = np.arange(len(logits))
        return [Problem(task=task, logits=logits, labels=labels, row=rows)]
    scores = logits if task is Task.MULTILABEL else log_probabilities(task, logits)
    return [_by_order(scores[:, c], truth[:, c]) for c in classes]


def values(
    parts: Sequence[Problem],
    metric: str,
    member: Int[np.ndarray, "n"],
    times: Float[np.ndarray, "s g"],
) -> Float[np.ndarray, "s"]:
    """Compute the metric under several weightings of the images.

    Args:
      parts: result of `problems` for this metric.
      metric: name of the metric.
      member: group of each image.
      times: count of each group, in each weighting.
    """
    found = np.empty((len(parts), len(times)))
    for i, part in enumerate(parts):
        # Number of a group's images in each row, so that no weight is needed for each image.
        table = scipy.sparse.csr_matrix(
            (np.ones(len(member)), (part.row, member)),
            shape=(len(part.logits), times.shape[1]),
        )
        measured = measure(part.task, part.logits, part.labels, (table @ times.T).T, {})
        name = metric if metric in measured.values else "roc_auc"
        found[i] = measured.values[name]
    defined = ~np.isnan(found)
    total = np.where(defined, found, 0.0).sum(axis=0)
    return np.divide(
        total, defined.sum(axis=0), out=np.full(len(times), np.nan), where=defined.any(axis=0)
    )


def _by_confusion(task: Task, logits: np.ndarray, labels: np.ndarray) -> Problem:
    """Make one row for each pair of true and predicted class."""
    k = logits.shape[1]
    true, predicted = np.divmod(np.arange(k * k), k)
    row = labels * k + logits.argmax(axis=1)
    return Problem(task=task, logits=np.eye(k)[predicted], labels=true, row=row)


def _by_order(scores: np.ndarray, truth: np.ndarray) -> Problem:
    """Make one row for each run of one truth in the order of the scores; ties stay ties."""
    level = np.unique(scores, return_inverse=True)[1]  # rank of each image's score, lowest first
    of_level = np.zeros((level.max() + 1, 2), bool)
    of_level[level, truth] = True
    mixed = of_level[:, 0] & of_level[:, 1]
    kind = np.where(mixed, 2, of_level.argmax(axis=1))
    begins = np.r_[True, (kind[1:] != kind[:-1]) | mixed[1:]]
    rank = np.cumsum(begins) - 1  # run that each level belongs to
    rows, row = np.unique(2 * rank[level] + truth, return_inverse=True)
    return Problem(
        task=Task.MULTILABEL,
        logits=(rows // 2).astype(np.float64)[:, None],
        labels=(rows % 2)[:, None],
        row=row,
    )
