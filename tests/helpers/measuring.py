"""Evaluate logits and labels in one call."""

from collections.abc import Mapping, Sequence

import numpy as np

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.tasks.base import Resampling
from fmi_jax.tasks.logits import Classification
from fmi_jax.tasks.weighted import interval

Groups = Mapping[str, Sequence[str]]


def evaluate(
    task: type[Classification],
    logits: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    class_groups: Groups | None = None,
) -> Evaluation:
    measured = {"logits": logits, "labels": labels}
    return task(tuple(classes), class_groups or {}).evaluate(measured)


def bootstrap(
    task: type[Classification],
    logits: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    samples: int,
    seed: int,
    groups: Sequence[str] | None = None,
    class_groups: Groups | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the metrics on resamples."""
    measured = {"logits": logits, "labels": labels}
    of_set = task(tuple(classes), class_groups or {})
    drawn = of_set.bootstrap(measured, Resampling(samples, seed, groups)).values
    return {name: interval(drawn[name]) for name in of_set.metric_names if name in drawn}
