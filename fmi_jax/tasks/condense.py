"""The same metric from fewer rows, so that thousands of resamples of it take seconds.

`weighted` weighs every image. Many images are one to a metric: those with the same true and
predicted class where it looks at the confusion matrix alone, and those that follow each other in
the order of the scores, of one truth, where it looks at that order (the AUROC counts pairs of two
truths). Their weights are added up first; the value is the same to rounding.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from fmi_jax.tasks.weighted import WeightedMetrics, mean_over, several_classes

Weigh = Callable[[Mapping[str, np.ndarray], np.ndarray], WeightedMetrics]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Rows to be weighed, and the images that each stands for.

    Attributes:
      logits: scores, `[m, k]`.
      labels: labels as `weigh` takes them.
      row: row of every image, `[n]`; -1 for those that do not count.
      weigh: computes metrics of weighted rows.
      metric: name of the one that counts.
    """

    logits: np.ndarray
    labels: np.ndarray
    row: np.ndarray
    weigh: Weigh
    metric: str


def whole(logits: np.ndarray, labels: np.ndarray, weigh: Weigh, metric: str) -> Problem:
    """A row for each image."""
    return Problem(
        logits=logits, labels=labels, row=np.arange(len(logits)), weigh=weigh, metric=metric
    )


def by_confusion(logits: np.ndarray, labels: np.ndarray, weigh: Weigh, metric: str) -> Problem:
    """A row for each true and predicted class that images have."""
    k = logits.shape[1]
    cells, row = np.unique(labels * k + logits.argmax(axis=1), return_inverse=True)
    true, predicted = np.divmod(cells, k)
    return Problem(
        logits=np.eye(k)[predicted],
        labels=true,
        row=row,
        weigh=weigh,
        metric=metric,
    )


def by_order(scores: np.ndarray, truth: np.ndarray) -> Problem:
    """A row for each stretch of one truth in the order of the scores; ties stay ties.

    Images whose truth is NaN do not count; that of one at least is known.
    """
    known = ~np.isnan(truth)
    scores, truth = scores[known], truth[known].astype(np.int64)
    level = np.unique(scores, return_inverse=True)[1]  # of every image, from the lowest score on
    of_level = np.zeros((level.max() + 1, 2), bool)
    of_level[level, truth] = True
    mixed = of_level[:, 0] & of_level[:, 1]
    kind = np.where(mixed, 2, of_level.argmax(axis=1))
    # Of every level, equal ones a stretch.
    rank = np.cumsum(np.r_[True, (kind[1:] != kind[:-1]) | mixed[1:]]) - 1
    rows, found = np.unique(2 * rank[level] + truth, return_inverse=True)
    row = np.full(len(known), -1)
    row[known] = found
    return Problem(
        logits=(rows // 2).astype(np.float64)[:, None],
        labels=(rows % 2)[:, None],
        row=row,
        weigh=lambda measured, weights: several_classes(
            measured["logits"], measured["labels"], weights
        ),
        metric="roc_auc",
    )


def values(
    parts: Sequence[Problem],
    member: Int[np.ndarray, "n"],
    times: Float[np.ndarray, "s g"],
) -> Float[np.ndarray, "s"]:
    """Compute the mean over the parts that the images define, under several weightings of them.

    Args:
      parts: problems whose mean is the metric.
      member: each image's group.
      times: number of times that each group counts.
    """
    found = np.empty((len(parts), 1 + len(times)))
    times = np.vstack([np.ones(times.shape[1]), times])
    for i, part in enumerate(parts):
        # How many images of a group stand in a row: weights need not be made for each image.
        counted = part.row >= 0
        table = scipy.sparse.csr_matrix(
            (np.ones(counted.sum()), (part.row[counted], member[counted])),
            shape=(len(part.logits), times.shape[1]),
        )
        measured = {"logits": part.logits, "labels": part.labels}
        found[i] = part.weigh(measured, (table @ times.T).T).values[part.metric]
    return mean_over(~np.isnan(found[:, 0]), found[:, 1:].T)
