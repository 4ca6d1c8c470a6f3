"""What the kinds of classification share: networks that give `k` logits per image."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import ArrayLike

from fmi_jax.artifacts.evaluation import Evaluation, named_columns, undefined_in
from fmi_jax.errors import UserError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks import calibration, condense, pooling, weighted
from fmi_jax.tasks.base import (
    ExampleGroup,
    ImageOf,
    Measured,
    Metric,
    Objective,
    Resampling,
    Task,
    members,
)
from fmi_jax.tasks.imbalance import imbalance_loss
from fmi_jax.tasks.intervals import Interval, auroc, proportion
from fmi_jax.tasks.operating import Rule, decide
from fmi_jax.tasks.pooling import Pooled
from fmi_jax.tasks.predictions import Predictions, read_predictions
from fmi_jax.types import Rows

GROUP_PREFIX = "roc_auc_"
"""Prefix of the metric of a group of classes: mean AUROC of these, each against the rest."""


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
        return (*super().metric_names, *(GROUP_PREFIX + group for group in self.class_groups))

    def objective(self, config: LossConfig, counts: Sequence[float], total: ArrayLike) -> Objective:
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
    def hard_labels(self, labels: np.ndarray) -> Num[np.ndarray, "..."]:
        """Convert labels to those that are evaluated; NaN stays NaN."""

    @abc.abstractmethod
    def wrong_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Find labels that are none, and say what was expected."""

    @abc.abstractmethod
    def weigh(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> weighted.WeightedMetrics:
        """Compute metrics, also those of each class, for each weighting of the images."""

    def checked(self, measured: Measured) -> Measured:
        """Convert logits to float64 and labels to hard ones, or say which image is wrong."""
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
        areas, known = found.per_class["roc_auc"], found.known["roc_auc"]
        groups = {
            name: weighted.mean_over(known[c], areas[:, c]) for name, c in self._members().items()
        }
        return {
            name: value
            for name, value in (found.values | groups).items()
            if name in self.metric_names
        }

    def all_values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute every metric, also of each class, for each weighting of the images."""
        found = self.weigh(measured, weights)
        return self._values(found) | named_columns(self.classes, found.per_class)

    def exact(self, measured: Measured, member: Int[np.ndarray, "n"]) -> dict[str, Interval]:
        """Wilson's intervals of proportions and DeLong's of the AUROC of each class."""
        scores, has = self.scores(measured["logits"]), self.present(measured["labels"])
        called, known = self.called(measured["logits"]), self.known(measured["labels"])
        right, whole = np.asarray((called == has).all(axis=1)), np.asarray(known.all(axis=1))
        found = {"accuracy": proportion(right, whole, member)}
        for c, name in enumerate(self.classes):
            at = known[:, c]
            yes, said, of = has[at, c], called[at, c], member[at]
            found |= {
                f"precision[{name}]": proportion(yes, said, of),
                f"recall[{name}]": proportion(said, yes, of),
                f"specificity[{name}]": proportion(~said, ~yes, of),
                f"roc_auc[{name}]": auroc(scores[at, c], yes, of),
            }
        return found

    def pooled(self, measured: Measured, groups: Sequence[str], rule: str) -> Pooled:
        """Pool probabilities by a rule, and labels: a finding of any image is one of the group."""
        measured = self.checked(measured)
        labels = measured["labels"]
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        known = self.agreed(labels, member)
        return Pooled(
            measured={
                "logits": self.pool_logits(measured["logits"], member, rule)[known],
                "labels": pooling.highest(labels, member)[known],
            },
            names=names[known].tolist(),
            left_out=int((~known).sum()),
        )

    @abc.abstractmethod
    def pool_logits(
        self, logits: Float[np.ndarray, "n k"], member: Int[np.ndarray, "n"], rule: str
    ) -> Float[np.ndarray, "g k"]:
        """Compute logits of the pooled probabilities of each group."""

    def agreed(self, labels: np.ndarray, member: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "g"]:
        """Find the groups that have one label."""
        return np.ones(member.max() + 1, bool)

    def chosen(self, measured: Measured, rule: Rule) -> dict[str, Any]:
        """Choose the temperature, and a threshold for each class that is decided on."""
        measured = self.checked(measured)
        p, has = self.probabilities(measured["logits"]), self.present(measured["labels"])
        known = self.known(measured["labels"])
        thresholds = {
            self.classes[c]: rule.choose(p[known[:, c], c], has[known[:, c], c])
            for c in self.decided()
        }
        at = calibration.temperature(measured["logits"], measured["labels"])
        return {
            "temperature": None if math.isnan(at) else at,
            "thresholds": {n: t for n, t in thresholds.items() if math.isfinite(t)},
        }

    def assessed(
        self,
        evaluation: Evaluation,
        measured: Measured,
        choices: Mapping[str, Any],
        rule: Rule,
        how: Resampling,
    ) -> Evaluation:
        """Add calibration of every class, and decisions at what was `chosen`."""
        measured, member = self.checked(measured), members(how.groups, evaluation.count)
        logits, has = measured["logits"], self.present(measured["labels"])
        p, at = self.probabilities(logits), choices["temperature"]
        scaled = None if at is None else self.probabilities(logits / at)
        known = self.known(measured["labels"])
        calibrated = {
            self.classes[c]: calibration.calibration(
                p[of, c],
                has[of, c],
                np.unique(member[of], return_inverse=True)[1],
                how.samples,
                how.seed,
                None if scaled is None else scaled[of, c],
            )
            for c in (self._stated() if how.samples else ())
            for of in [np.flatnonzero(known[:, c])]
            if len(of)
        }
        index = {name: c for c, name in enumerate(self.classes)}
        decisions = {
            name: decide(p[of, c], has[of, c], member[of], threshold, rule.prevalence)
            for name, threshold in choices["thresholds"].items()
            for c in [index[name]]
            for of in [known[:, c]]
        }
        return dataclasses.replace(
            evaluation,
            calibration=calibrated,
            choices=dict(choices),
            decisions=decisions,
        )

    def outcomes(
        self, measured: Measured
    ) -> tuple[Float[np.ndarray, "n k"], Bool[np.ndarray, "n k"]]:
        """Probabilities of every class, of two the second."""
        stated, labels = [*self._stated()], measured["labels"]
        p = np.where(self.known(labels), self.probabilities(measured["logits"]), np.nan)
        return p[:, stated], self.present(labels)[:, stated]

    def _stated(self) -> Sequence[int]:
        """Classes whose probabilities are not one minus those of another."""
        return self.decided() or range(len(self.classes))

    def decided(self) -> Sequence[int]:
        """Classes whose presence is decided by a threshold; none: by the most probable class."""
        return ()

    def scores(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Scores that rank the images of each class against the rest."""
        return self.log_probabilities(logits)

    @abc.abstractmethod
    def called(self, logits: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
        """Classes that each image is given."""

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

    def kinds(self, measured: Measured) -> Bool[np.ndarray, "n m"]:
        """Images with each class, those without it, and those of which everything is known."""
        has, known = self.present(measured["labels"]), self.known(measured["labels"])
        return np.hstack([has, known & ~has, known.all(axis=1, keepdims=True)])

    @abc.abstractmethod
    def present(self, labels: np.ndarray) -> Bool[np.ndarray, "n k"]:
        """Presence of each class by the labels; False where it is not known."""

    def known(self, labels: np.ndarray) -> Bool[np.ndarray, "n k"]:
        """Classes whose presence or absence the labels tell, by default all."""
        return np.ones((len(labels), len(self.classes)), bool)

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
        """Draw ROC and precision-recall curves and, where images have one class, the confusions."""
        from fmi_jax.tasks import figures  # it imports matplotlib

        table = read_predictions(path, self.label, self.classes)
        assert table.labels is not None
        drawn = {}
        if evaluation.confusion.ndim == 2:  # one table for all classes
            drawn["confusion"] = (
                "Confusion matrix of the test images",
                figures.confusion(evaluation),
            )
        curves = (evaluation, table.labels, table.probabilities)
        drawn["roc"] = ("ROC curves of the test images", figures.roc(*curves))
        drawn["precision_recall"] = (
            "Precision-recall curves of the test images; dotted: prevalence",
            figures.precision_recall(*curves),
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
