"""What the classifier said about every image, as a table: `predictions.csv`."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fmi_jax import atomic
from fmi_jax.data.labels import Label
from fmi_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Class probabilities of images, in the order of their split.

    Attributes:
      label: form of the labels.
      classes: names of the `k` classes.
      ids: ids of the `n` images.
      probabilities: `[n, k]`.
      labels: true class index `[n]`, or 0/1 `[n, k]` for a multi-label task, NaN where a label is
        not known; None for images of which no label is known.
      groups: patient, lesion or study of each image, where the data name one.
      thresholds: lowest probability of a class that is decided to be present, by class.
    """

    label: Label
    classes: tuple[str, ...]
    ids: Sequence[str]
    probabilities: Float[np.ndarray, "n k"]
    labels: np.ndarray | None = None
    groups: Sequence[str] | None = None
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def predicted(self) -> np.ndarray:
        """Most probable class `[n]`; for a multi-label task 0/1 `[n, k]`: more than one half."""
        if self.label is Label.VECTOR:
            return (self.probabilities > 0.5).astype(np.int64)
        return self.probabilities.argmax(axis=1)

    def write(self, path: Path) -> None:
        """Write a CSV (RFC 4180): id, group, label, predicted, and `p_<class>` for each class.

        Class names stand for classes. A multi-label task has a 0/1 column `label_<class>` and
        `predicted_<class>` for each; a label that is not known is empty. A class with a threshold
        has a 0/1 column `decision_<class>`.
        Without groups or labels there are no columns for them.
        Probabilities have 9 significant digits, enough to restore any float32.
        """
        known = [] if self.labels is None else [("label", self.labels)]
        columns: dict[str, Any] = {"id": self.ids}
        if self.groups is not None:
            columns["group"] = self.groups
        for name, values in [*known, ("predicted", self.predicted)]:
            if self.label is Label.VECTOR:
                columns |= {
                    f"{name}_{c}": ["" if v != v else int(v) for v in values[:, i].tolist()]
                    for i, c in enumerate(self.classes)
                }
            else:
                columns[name] = [self.classes[int(v)] for v in values]
        for name, column in zip(self.classes, np.asarray(self.probabilities).T, strict=True):
            columns[f"p_{name}"] = [f"{p:.9g}" for p in column]
            if name in self.thresholds:
                columns[f"decision_{name}"] = (column >= self.thresholds[name]).astype(np.int64)
        table = [columns, *zip(*columns.values(), strict=True)]
        atomic.write_bytes(path, atomic.csv_bytes(table, end="\r\n"))


def read_predictions(path: Path, label: Label, classes: Sequence[str]) -> Predictions:
    """The labelled predictions that `Predictions.write` left at `path`.

    Raises:
      UserError: the file is missing, or is not such a table of these classes.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected the predictions of a finished run.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = atomic.csv_lines(file)
        if label is Label.VECTOR:
            labels = [
                [math.nan if row[f"label_{c}"] == "" else int(row[f"label_{c}"]) for c in classes]
                for row in rows
            ]
        else:
            labels = [list(classes).index(row["label"]) for row in rows]
        return Predictions(
            label=label,
            classes=tuple(classes),
            ids=[row["id"] for row in rows],
            probabilities=np.array([[float(row[f"p_{c}"]) for c in classes] for row in rows]),
            labels=np.array(labels),
            groups=[row["group"] for row in rows] if rows and "group" in rows[0] else None,
        )
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is not the prediction table of classes {', '.join(classes)}"
            f" ({type(error).__name__}: {error}); expected the file as the run wrote it."
        ) from error
