"""Grades: classes in an order, so that a far grade is a worse mistake than the next one."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from fmi_jax.data.labels import Label
from fmi_jax.tasks import condense, weighted
from fmi_jax.tasks.base import Measured, Metric
from fmi_jax.tasks.classification import Multiclass


@dataclasses.dataclass(frozen=True)
class Grades(Multiclass):
    """One of several grades, in the order of the classes."""

    name = "grades"
    selects = "grade_distance"
    shown = ("grade_distance", "accuracy")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "grade_distance": Metric(
            label="Mean distance in grades", higher_is_better=False, bounds=(0.0, math.inf)
        ),
        **Multiclass.metrics,
    }

    @classmethod
    def suits(cls, label: Label, classes: Sequence[str]) -> bool:
        """Test for classes that are called grades."""
        return super().suits(label, classes) and all(name.startswith("grade") for name in classes)

    def weigh(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> weighted.WeightedMetrics:
        """Add the mean distance between the true and the predicted grade."""
        found = super().weigh(measured, weights)
        grade = np.arange(len(self.classes))
        far = np.abs(grade[:, None] - grade)
        distance = (found.confusion * far).sum(axis=(1, 2)) / found.confusion.sum(axis=(1, 2))
        return found._replace(values={**found.values, "grade_distance": distance})

    def condensed(self, measured: Measured, metric: str) -> list[condense.Problem]:
        """Read the distance from the confusion matrix."""
        if metric == "grade_distance":
            logits, labels = measured["logits"], measured["labels"]
            return [condense.by_confusion(logits, labels, self.weigh, metric)]
        return super().condensed(measured, metric)
