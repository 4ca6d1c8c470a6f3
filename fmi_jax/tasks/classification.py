"""Classification: which of the classes, or which of several findings, an image shows.

Every metric is computed in float64 from the logits and labels of all images, never averaged
over batches and never rounded (`weighted`, which the tests hold against scikit-learn).

A metric that the data do not define is NaN and named, never 0 or 0.5 (docs/protocols.md, B24, B25):

* the recall, AUROC and average precision of a class without images, the precision of a class
  that was never predicted, kappa where labels and predictions are one and the same class;
* a macro average runs over the classes (for one-vs-one AUROC: the pairs of classes) that have a
  value. The exception is macro precision, where a class that has images and was never predicted
  counts as 0, as it does in the study and in scikit-learn: leaving it out would reward ignoring it.

Labels are trained on as they are and evaluated as yes or no: a soft label of one of several classes
counts as positive from one half on (`hard_labels`).
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from fmi_jax.artifacts.result import Evaluation, undefined_in
from fmi_jax.data.labels import Label
from fmi_jax.errors import UserError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks import condense, weighted
from fmi_jax.tasks.base import ExampleGroup, ImageOf, Measured, Metric, Objective, Task
from fmi_jax.tasks.imbalance import imbalance_loss
from fmi_jax.tasks.predictions import Predictions, read_predictions
from fmi_jax.types import Rows

GROUP_PREFIX = "roc_auc_"
"""Prefix of the metric of a group of classes: mean AUROC of these, each against the rest."""

_MACRO = {
    "precision": Metric(label="Macro precision"),
    "recall": Metric(label="Macro recall"),
    "f1": Metric(label="Macro F1"),
}
_ONE_CLASS = {
    "quadratic_kappa": Metric(label="Quadratic weighted kappa"),
    "cohen_kappa": Metric(label="Cohen's kappa"),
    "accuracy": Metric(label="Accuracy"),
    "balanced_accuracy": Metric(label="Balanced accuracy"),
    **_MACRO,
}


class Classification(Task):
    """A task whose networks give `k` logits per image."""

    file = "predictions.csv"
    shown = ("quadratic_kappa", "mAP", "accuracy", "balanced_accuracy", "f1", "roc_auc")
    per_class: ClassVar[Mapping[str, str]] = {
        "support": "Images",
        "precision": "Precision",
        "recall": "Recall",
        "specificity": "Specificity",
        "f1": "F1",
        "roc_auc": "AUROC",
        "average_precision": "Average precision",
    }
    of_classes = "Each class against the rest"

    @classmethod
    def find_metric(cls, name: str) -> Metric | None:
        """Find a metric by name; None if there is none."""
        if name in cls.metrics or not name.startswith(GROUP_PREFIX):
            return cls.metrics.get(name)
        return Metric(label=f"AUROC (macro, {name.removeprefix(GROUP_PREFIX)} classes)")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that this data set has, those of groups of classes last."""
        return (*self.metrics, *(GROUP_PREFIX + group for group in self.class_groups))

    def objective(self, config: LossConfig, counts: Sequence[float], total: int) -> Objective:
        """Make the plain loss, or one for classes of unequal frequency."""
        if config == LossConfig():
            return self
        return imbalance_loss(self.label, self.classes, config, counts, total)

    def measure(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Keep logits and labels."""
        return {"logits": outputs, "labels": batch["labels"]}

    @abc.abstractmethod
    def log_probabilities(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute log-probabilities of the classes in float64."""

    def probabilities(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute probabilities of the classes in float64."""
        return np.exp(self.log_probabilities(logits))

    @abc.abstractmethod
    def logits(self, probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Find logits with these `probabilities`, in float64: infinite for 0 and 1.

        So probabilities (kNN) are measured without a second activation on top of them
        (docs/protocols.md, B11 and B12).
        """

    @abc.abstractmethod
    def hard_labels(self, labels: np.ndarray) -> Int[np.ndarray, "..."]:
        """Convert labels to those that are evaluated."""

    @abc.abstractmethod
    def wrong_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Find labels that are none, and say what was expected."""

    @abc.abstractmethod
    def weigh(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> weighted.WeightedMetrics:
        """Compute metrics, also those of each class, for each weighting of the images."""

    def checked(self, measured: Measured) -> Measured:
        """Convert logits to float64 and labels to int64, or say which image is wrong."""
        logits, labels = np.asarray(measured["logits"], np.float64), np.asarray(measured["labels"])
        k = len(self.classes)
        if logits.shape != (len(logits), k) or labels.shape != (len(logits), *self.label.shape(k)):
            raise ValueError(
                f"logits {logits.shape} and labels {labels.shape} do not fit {k} classes"
                f" of a {self.name} task"
            )
        if not len(logits):
            raise UserError("there are no images to evaluate: expected a split with at least one.")
        wrong, valid = self.wrong_labels(labels)
        if wrong.any():
            raise UserError(
                f"label {labels[wrong][0]} of image {int(np.argwhere(wrong)[0, 0])} of the split is"
                f" no class: expected {valid}."
            )
        impossible = np.isnan(self.log_probabilities(logits)).any(axis=1)
        if impossible.any():
            raise UserError(
                f"the logits of {int(impossible.sum())} images (first: image"
                f" {int(impossible.argmax())} of the split) are not numbers: the model has"
                " diverged."
            )
        return {"logits": logits, "labels": self.hard_labels(labels)}

    def values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute every metric for each weighting of the images; undefined ones are NaN."""
        return self._values(self.weigh(measured, weights))

    def _values(self, found: weighted.WeightedMetrics) -> dict[str, np.ndarray]:
        areas = found.per_class["roc_auc"]
        groups = {name: weighted.mean_defined(areas[:, c]) for name, c in self._members().items()}
        return found.values | groups

    def _members(self) -> dict[str, list[int]]:
        """Indices of the classes of each group, by the group's metric."""
        return {
            GROUP_PREFIX + group: [self.classes.index(name) for name in members]
            for group, members in self.class_groups.items()
        }

    def evaluate(self, measured: Measured) -> Evaluation:
        """Measure a whole split, each image counted once."""
        measured = self.checked(measured)
        count = len(measured["logits"])
        found = self.weigh(measured, np.ones((1, count)))
        values = {name: float(value[0]) for name, value in self._values(found).items()}
        per_class = {
            name: {
                metric: int(value[0, c]) if metric == "support" else float(value[0, c])
                for metric, value in found.per_class.items()
            }
            for c, name in enumerate(self.classes)
        }
        return Evaluation(
            task=self.name,
            classes=self.classes,
            count=count,
            values=values,
            per_class=per_class,
            confusion=np.rint(found.confusion[0]).astype(np.int64),
            undefined=undefined_in(values, per_class),
        )

    def warning(self, evaluation: Evaluation) -> str:
        """Say that the same class, or the same classes, are predicted for all images."""
        predicted = evaluation.confusion.sum(axis=-2) > 0  # of a multi-label task: without, with
        if predicted.sum(axis=-1).max() > 1:
            return ""
        one = predicted.ndim == 1
        names = np.array(self.classes)[predicted if one else predicted[:, 1]]
        return (
            f"{'Only one class is' if one else 'The same classes are'} predicted for all"
            f" {evaluation.count} test images ({', '.join(names) or 'none'}): nothing is told"
            " apart."
        )

    def resampled(
        self,
        measured: Measured,
        metric: str,
        member: Int[np.ndarray, "n"],
        times: Float[np.ndarray, "s g"],
    ) -> Float[np.ndarray, "s"]:
        """Compute one metric for many weightings of groups, from fewer rows than images."""
        parts = self.condensed(measured, metric)
        # A weighting makes tables of as many columns as there are rows; these stay in the cache.
        size = max(1, 250_000 // max(len(part.logits) for part in parts))
        return np.concatenate(
            [
                condense.values(parts, member, times[start : start + size])
                for start in range(0, len(times), size)
            ]
        )

    @abc.abstractmethod
    def condensed(self, measured: Measured, metric: str) -> list[condense.Problem]:
        """Find what has to be weighed for a metric: its value is the mean over these."""

    def predictions(self, measured: Measured, rows: Rows) -> Predictions:
        """Make the table of what a network says of each image; labels may be unknown."""
        labels = measured.get("labels")
        return Predictions(
            classes=self.classes,
            label=self.label,
            ids=rows.ids,
            probabilities=self.probabilities(measured["logits"]),
            labels=None if labels is None else self.hard_labels(labels),
            groups=rows.groups,
        )

    def truth(self, measured: Measured) -> np.ndarray:
        """Labels."""
        return measured["labels"]

    def figures(self, path: Path, evaluation: Evaluation) -> dict[str, tuple[str, bytes]]:
        """Draw ROC curves and, where images have one class each, the confusion matrix."""
        from fmi_jax.tasks import figures  # it imports matplotlib

        table = read_predictions(path, self.label, self.classes)
        assert table.labels is not None
        drawn = {}
        if evaluation.confusion.ndim == 2:  # one table for all classes
            drawn["confusion"] = (
                "Confusion matrix of the test images",
                figures.confusion(evaluation),
            )
        drawn["roc"] = (
            "ROC curves of the test images",
            figures.roc(evaluation, table.labels, table.probabilities),
        )
        return drawn

    def examples(self, path: Path, image_of: ImageOf) -> list[ExampleGroup]:
        """Choose images of every class, and the surest mistakes."""
        from fmi_jax.tasks import examples

        return examples.groups(read_predictions(path, self.label, self.classes), image_of)

    def keep(self, path: Path, measured: Measured, rows: Rows) -> None:
        """Write `predictions.csv`."""
        self.predictions(measured, rows).write(path)

    def read(self, path: Path) -> tuple[Measured, Rows]:
        """Read `predictions.csv`."""
        table = read_predictions(path, self.label, self.classes)
        assert table.labels is not None
        return (
            {"logits": self.logits(table.probabilities), "labels": table.labels},
            Rows(table.ids, table.groups),
        )


class _OneClass(Classification):
    """Images have one class each: a softmax over all of them."""

    label = Label.INDEX

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

    def wrong_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Find those that are no index of a class."""
        k = len(self.classes)
        return ~np.isin(labels, np.arange(k)), f"a whole number from 0 to {k - 1}"

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

    def outcomes(self, measured: Measured) -> tuple[Float[np.ndarray, "m"], np.ndarray]:
        """Probabilities of the predicted classes."""
        logits = measured["logits"]  # of equal ones the first, which rounding must not decide
        return self.probabilities(logits).max(axis=1), logits.argmax(axis=1) == measured["labels"]

    def _ranked(self, metric: str) -> list[int]:
        """Classes whose AUROC, each against the rest, a metric is the mean of; none: another."""
        return self._members().get(metric, [])


@dataclasses.dataclass(frozen=True)
class Binary(_OneClass):
    """One of two classes, with two logits, as the studies train them."""

    name = "binary"
    selects = "roc_auc"
    metrics: ClassVar[Mapping[str, Metric]] = {
        **_ONE_CLASS,
        "roc_auc": Metric(label="AUROC"),
        "average_precision": Metric(label="Average precision"),
        "loss": Metric(label="Cross-entropy", higher_is_better=False),
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
        "loss": Metric(label="Cross-entropy", higher_is_better=False),
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

    def _ranked(self, metric: str) -> list[int]:
        return [*range(len(self.classes))] if metric == "roc_auc_ovr" else super()._ranked(metric)


@dataclasses.dataclass(frozen=True)
class Multilabel(Classification):
    """Any number of classes: a sigmoid for each."""

    name = "multilabel"
    selects = "roc_auc"
    label = Label.VECTOR
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric(label="Subset accuracy"),
        **_MACRO,
        "roc_auc": Metric(label="AUROC (macro)"),
        "mAP": Metric(label="Mean average precision"),
        "loss": Metric(label="Binary cross-entropy", higher_is_better=False),
    }

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Mean over the classes of the cross entropy of each sigmoid."""
        import optax  # with jax, which reading results does without

        return optax.sigmoid_binary_cross_entropy(outputs, batch["labels"]).mean(axis=-1), {}

    def log_probabilities(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute logarithms of the sigmoids in float64."""
        return -np.logaddexp(0.0, -np.asarray(logits, np.float64))

    def logits(self, probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Compute log-odds in float64."""
        p = np.asarray(probabilities, np.float64)
        with np.errstate(divide="ignore"):
            return np.log(p) - np.log1p(-p)

    def hard_labels(self, labels: np.ndarray) -> Int[np.ndarray, "..."]:
        """Call a class present from one half on, int64."""
        return (np.asarray(labels) >= 0.5).astype(np.int64)

    def wrong_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Find those outside 0 to 1."""
        return ~((labels >= 0) & (labels <= 1)), "a value from 0 to 1"

    def weigh(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> weighted.WeightedMetrics:
        """Compute metrics, averaged over classes."""
        return weighted.several_classes(measured["logits"], measured["labels"], weights)

    def condensed(self, measured: Measured, metric: str) -> list[condense.Problem]:
        """One problem per AUROC averaged over; all images for another metric."""
        logits, labels = measured["logits"], measured["labels"]
        classes = range(logits.shape[1]) if metric == "roc_auc" else self._members().get(metric, [])
        if not classes:
            return [condense.whole(logits, labels, self.weigh, metric)]
        return [condense.by_order(logits[:, c], labels[:, c]) for c in classes]

    def outcomes(self, measured: Measured) -> tuple[Float[np.ndarray, "m"], np.ndarray]:
        """Probabilities of all classes."""
        return self.probabilities(measured["logits"]).ravel(), measured["labels"].ravel() == 1
