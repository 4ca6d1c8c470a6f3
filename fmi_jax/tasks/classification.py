"""Classification: which of the classes, or which of several findings, an image shows.

Every metric is computed in float64 from the logits and labels of all images, never averaged
over batches and never rounded (`weighted`, which the tests hold against scikit-learn).

A metric that the data do not define is NaN and named, never 0 or 0.5 (docs/protocols.md, B24, B25):

* the recall, AUROC and average precision of a class without images, the precision of a class
  that was never predicted, kappa where labels and predictions are one and the same class;
* a macro average runs over the classes (for one-vs-one AUROC: the pairs of classes) that have a
  value on the whole split; a bootstrap resample averages over the same ones. The exception is macro
  precision, where a class that has images and was never predicted counts as 0, as it does in the
  study and in scikit-learn: leaving it out would reward ignoring it.

Labels are trained on as they are and evaluated as yes or no: a soft label of one of several classes
counts as positive from one half on (`hard_labels`). A label of several that is NaN is not known: it
counts neither in a loss nor in a metric.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from fmi_jax.data.labels import Label
from fmi_jax.tasks import condense, pooling, weighted
from fmi_jax.tasks.base import Measured, Metric
from fmi_jax.tasks.imbalance import over_known
from fmi_jax.tasks.intervals import Interval
from fmi_jax.tasks.logits import Classification

_MACRO = {
    "precision": Metric(label="Macro precision"),
    "recall": Metric(label="Macro recall"),
    "f1": Metric(label="Macro F1"),
}
_ONE_CLASS = {
    "quadratic_kappa": Metric(label="Quadratic weighted kappa", bounds=(-1.0, 1.0), ordinal=True),
    "cohen_kappa": Metric(label="Cohen's kappa", bounds=(-1.0, 1.0)),
    "accuracy": Metric(label="Accuracy"),
    "balanced_accuracy": Metric(label="Balanced accuracy"),
    **_MACRO,
}


class _OneClass(Classification):
    """Images have one class each: a softmax over all of them."""

    label = Label.INDEX
    pools = ("mean", "max")

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Cross entropy of the softmax."""
        import optax  # with jax, which reading results does without

        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"]), {}

    def log_probabilities(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute logarithms of the softmax in float64."""
        return weighted.log_softmax(logits)

    def logits(self, probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute logarithms in float64."""
        with np.errstate(divide="ignore"):
            return np.log(np.asarray(probabilities, np.float64))

    def hard_labels(self, labels: np.ndarray) -> Int[np.ndarray, "..."]:
        """Convert to int64."""
        return labels.astype(np.int64)

    def present(self, labels: np.ndarray) -> Bool[np.ndarray, "n k"]:
        """One class for each image."""
        return np.eye(len(self.classes), dtype=bool)[labels]

    def called(self, logits: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
        """Most probable class."""
        return self.present(logits.argmax(axis=1))

    def wrong_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Find those that are no index of a class."""
        k = len(self.classes)
        return ~np.isin(labels, np.arange(k)), f"a whole number from 0 to {k - 1}"

    def pool_logits(
        self, logits: Float[np.ndarray, "n k"], member: Int[np.ndarray, "n"], rule: str
    ) -> Float[np.ndarray, "g k"]:
        """Pool each class alone; the softmax then makes the sum 1."""
        pool = {"mean": pooling.log_mean, "max": pooling.highest}[rule]
        return pool(self.log_probabilities(logits), member)

    def condensed(self, measured: Measured, metric: str) -> list[condense.Problem]:
        """One row per cell of the confusion matrix, or one problem per AUROC averaged over."""
        logits, labels = measured["logits"], measured["labels"]
        if metric in _ONE_CLASS:
            return [condense.by_confusion(logits, labels, self.weigh, metric)]
        classes = self._ranked(metric)
        if not classes:
            return [condense.whole(logits, labels, self.weigh, metric)]
        scores, truth = self.log_probabilities(logits), np.eye(logits.shape[1], dtype=np.int64)
        return [condense.by_order(scores[:, c], truth[labels][:, c]) for c in classes]

    def _ranked(self, metric: str) -> list[int]:
        """Classes whose AUROC, each against the rest, a metric is the mean of; none: another."""
        return self._members().get(metric, [])


@dataclasses.dataclass(frozen=True)
class Binary(_OneClass):
    """One of two classes, with two logits, as the studies train them."""

    name = "binary"
    selects = "roc_auc"
    left_out = tuple(_MACRO)
    pools = pooling.RULES
    per_class: ClassVar[Mapping[str, str]] = {
        **Classification.per_class,
        "precision": "Predictive value",
        "recall": "Sensitivity",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        **_ONE_CLASS,
        "roc_auc": Metric(label="AUROC"),
        "average_precision": Metric(label="Average precision"),
        "loss": Metric(label="Cross-entropy", higher_is_better=False, bounds=(0.0, math.inf)),
    }

    @classmethod
    def suits(cls, label: Label, classes: Sequence[str]) -> bool:
        """Test for one of two classes."""
        return super().suits(label, classes) and len(classes) == 2

    def checked(self, measured: Measured) -> Measured:
        """Refuse another number of classes."""
        if len(self.classes) != 2:
            raise ValueError(f"a binary task has 2 classes, not {len(self.classes)}")
        return super().checked(measured)

    def weigh(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> weighted.WeightedMetrics:
        """Compute metrics; AUROC and average precision are those of the second class."""
        return weighted.one_class(measured["logits"], measured["labels"], weights, binary=True)

    def decided(self) -> Sequence[int]:
        """Presence of the second class is decided."""
        return (1,)

    def pool_logits(
        self, logits: Float[np.ndarray, "n k"], member: Int[np.ndarray, "n"], rule: str
    ) -> Float[np.ndarray, "g k"]:
        """Pool as several classes are, or by the largest or noisy-or of the second class."""
        if rule == "mean":
            return super().pool_logits(logits, member, rule)
        pool = {"max": pooling.highest, "noisy_or": pooling.noisy_or}[rule]
        log_odds = pool(logits[:, 1:] - logits[:, :1], member)
        return -np.logaddexp(0.0, np.hstack([log_odds, -log_odds]))

    def exact(self, measured: Measured, member: Int[np.ndarray, "n"]) -> dict[str, Interval]:
        """Add the AUROC, that of the second class."""
        found = super().exact(measured, member)
        return found | {"roc_auc": found[f"roc_auc[{self.classes[1]}]"]}

    def _ranked(self, metric: str) -> list[int]:
        return [1] if metric == "roc_auc" else super()._ranked(metric)


@dataclasses.dataclass(frozen=True)
class Multiclass(_OneClass):
    """One of several classes."""

    name = "multiclass"
    selects = "balanced_accuracy"
    metrics: ClassVar[Mapping[str, Metric]] = {
        **_ONE_CLASS,
        "roc_auc": Metric(label="AUROC (macro, one-vs-one)"),
        "roc_auc_ovr": Metric(label="AUROC (macro, one-vs-rest)"),
        "average_precision": Metric(label="Average precision (macro, one-vs-rest)"),
        "loss": Metric(label="Cross-entropy", higher_is_better=False, bounds=(0.0, math.inf)),
    }

    @classmethod
    def suits(cls, label: Label, classes: Sequence[str]) -> bool:
        """Test for one of more or fewer than two classes."""
        return super().suits(label, classes) and len(classes) != 2

    def weigh(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> weighted.WeightedMetrics:
        """Compute metrics, averaged over classes or pairs of classes."""
        return weighted.one_class(measured["logits"], measured["labels"], weights, binary=False)

    def agreed(self, labels: np.ndarray, member: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "g"]:
        """Find the groups whose images have the same class."""
        return pooling.highest(labels, member) == -pooling.highest(-labels, member)

    def _ranked(self, metric: str) -> list[int]:
        return [*range(len(self.classes))] if metric == "roc_auc_ovr" else super()._ranked(metric)


@dataclasses.dataclass(frozen=True)
class Multilabel(Classification):
    """Any number of classes: a sigmoid for each."""

    name = "multilabel"
    selects = "roc_auc"
    label = Label.VECTOR
    exclusive = False
    pools = pooling.RULES
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric(label="Subset accuracy"),
        **_MACRO,
        "roc_auc": Metric(label="AUROC (macro)"),
        "mAP": Metric(label="Mean average precision"),
        "loss": Metric(
            label="Binary cross-entropy", higher_is_better=False, bounds=(0.0, math.inf)
        ),
    }

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Mean over the classes of the cross entropy of each sigmoid; 0 where it is not known."""
        import optax  # with jax, which reading results does without

        cost = functools.partial(optax.sigmoid_binary_cross_entropy, outputs)
        return over_known(cost, batch["labels"]), {}

    def log_probabilities(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute logarithms of the sigmoids in float64."""
        return -np.logaddexp(0.0, -np.asarray(logits, np.float64))

    def logits(self, probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute log-odds in float64."""
        p = np.asarray(probabilities, np.float64)
        with np.errstate(divide="ignore"):
            return np.log(p) - np.log1p(-p)

    def hard_labels(self, labels: np.ndarray) -> Num[np.ndarray, "..."]:
        """Call a class present from one half on, int64; float64 if any label is NaN."""
        hard, unknown = (np.asarray(labels) >= 0.5).astype(np.int64), np.isnan(labels)
        return np.where(unknown, np.nan, hard) if unknown.any() else hard

    def present(self, labels: np.ndarray) -> Bool[np.ndarray, "n k"]:
        """Any number of classes for each image."""
        return labels == 1

    def known(self, labels: np.ndarray) -> Bool[np.ndarray, "n k"]:
        """Classes whose label is not NaN."""
        return ~np.isnan(labels)

    def decided(self) -> Sequence[int]:
        """Presence of every class is decided."""
        return range(len(self.classes))

    def scores(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Logits, which keep their order where probabilities reach 1."""
        return logits

    def called(self, logits: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
        """Classes more probable than not."""
        return logits > 0

    def pool_logits(
        self, logits: Float[np.ndarray, "n k"], member: Int[np.ndarray, "n"], rule: str
    ) -> Float[np.ndarray, "g k"]:
        """Pool each class alone."""
        if rule == "noisy_or":
            return pooling.noisy_or(logits, member)
        if rule == "max":
            return pooling.highest(logits, member)
        present, absent = self.log_probabilities(logits), self.log_probabilities(-logits)
        return pooling.log_mean(present, member) - pooling.log_mean(absent, member)

    def wrong_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Find those outside 0 to 1; NaN is not known."""
        return (labels < 0) | (labels > 1), "a value from 0 to 1"

    def weigh(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> weighted.WeightedMetrics:
        """Compute metrics, averaged over classes."""
        return weighted.several_classes(measured["logits"], measured["labels"], weights)

    def condensed(self, measured: Measured, metric: str) -> list[condense.Problem]:
        """One problem per AUROC averaged over; all images for another metric."""
        logits, labels = measured["logits"], measured["labels"]
        classes = range(logits.shape[1]) if metric == "roc_auc" else self._members().get(metric, [])
        # A class of which nothing is known has no AUROC, and no part in the mean.
        classes = [c for c in classes if self.known(labels)[:, c].any()]
        if not classes:
            return [condense.whole(logits, labels, self.weigh, metric)]
        return [condense.by_order(logits[:, c], labels[:, c]) for c in classes]
