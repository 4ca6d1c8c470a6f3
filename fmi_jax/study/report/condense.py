"""The same metric from fewer rows, so that thousands of resamples of it take seconds.

`weighted_metrics.measure` weighs every image. Many images are one to a metric: those with the
same true and predicted class where it looks at the confusion matrix alone, and those that follow
each other in the order of the scores, of one truth, where it looks at that order (the AUROC counts
pairs of two truths). Their weights are added up first; the value is the same to rounding.
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
    """Rows to be weighed by `measure`, and which images each stands for.

    Attributes:
      task: of these rows; one class against the rest is a multi-label task of one class.
      logits: `[m, k]`.
      labels: as `measure` takes them.
      row: of every image, `[n]`.
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
    """What has to be measured for a metric; it is the mean over those that are defined.

    Args:
      task, logits, labels, class_groups: as `weighted_metrics.measure` takes them.
      metric: its name.
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
    """The metric under several weightings of the images.

    Args:
      parts: as `problems` gave them for this metric.
      metric: its name.
      member: which group an image belongs to.
      times: how often each group counts.
    """
    found = np.empty((len(parts), len(times)))
    for i, part in enumerate(parts):
        # How many images of a group stand in a row: weights need not be made for each image.
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
    """A row for each true and predicted class."""
    k = logits.shape[1]
    true, predicted = np.divmod(np.arange(k * k), k)
    row = labels * k + logits.argmax(axis=1)
    return Problem(task=task, logits=np.eye(k)[predicted], labels=true, row=row)


def _by_order(scores: np.ndarray, truth: np.ndarray) -> Problem:
    """A row for each stretch of one truth in the order of the scores; ties stay ties."""
    level = np.unique(scores, return_inverse=True)[1]  # of every image, from the lowest score on
    of_level = np.zeros((level.max() + 1, 2), bool)
    of_level[level, truth] = True
    mixed = of_level[:, 0] & of_level[:, 1]
    kind = np.where(mixed, 2, of_level.argmax(axis=1))
    begins = np.r_[True, (kind[1:] != kind[:-1]) | mixed[1:]]
    rank = np.cumsum(begins) - 1  # of every level, equal ones a stretch
    rows, row = np.unique(2 * rank[level] + truth, return_inverse=True)
    return Problem(
        task=Task.MULTILABEL,
        logits=(rows // 2).astype(np.float64)[:, None],
        labels=(rows % 2)[:, None],
        row=row,
    )
