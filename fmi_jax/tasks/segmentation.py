"""Segmentation: which class each pixel of an image shows; class 0 is the background.

Everything is measured at the size of the network's input, to which a prepared mask is resized
(nearest pixel), never at the size of the original image. Pixels of `IGNORE` count nowhere.

Dice and IoU are pooled: the pixels of all images are added up first, so an image with a large
lesion weighs more than one with a small lesion, and one without any still counts, by its false
alarms. A class that is neither in the predictions nor in the masks of the weighted images has no
value (NaN); the means are over the foreground classes that have one when every image counts.
Distances between outlines, such as Hausdorff's, are not measured: they need whole images on the
host.
"""

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from fmi_jax import atomic
from fmi_jax.artifacts.evaluation import Evaluation, named_columns, undefined_in
from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.errors import UserError
from fmi_jax.tasks.base import Measured, Metric, Task
from fmi_jax.tasks.weighted import mean_over
from fmi_jax.types import Rows

_SUMS = {"intersection": "overlap", "predicted": "predicted", "true": "true"}
"""Pixels counted for each class of an image, with the prefix of their columns."""


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """One class for each pixel: a softmax over logits `[b, h, w, k]`."""

    name = "segmentation"
    label = Label.MAP
    selects = "dice"
    file = "segmentation.csv"
    shown = ("dice", "iou")
    per_class: ClassVar[Mapping[str, str]] = {"support": "Images", "dice": "Dice", "iou": "IoU"}
    metrics: ClassVar[Mapping[str, Metric]] = {
        "dice": Metric(label="Dice (mean over foreground classes)"),
        "iou": Metric(label="IoU (mean over foreground classes)"),
        "loss": Metric(
            label="Cross-entropy + soft Dice loss", higher_is_better=False, bounds=(0.0, math.inf)
        ),
    }

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Add the mean cross-entropy of the pixels and the soft Dice loss of the foreground."""
        return self._losses(outputs, batch["labels"]), {}

    def _losses(self, logits: Any, labels: Any) -> Float[Any, "b"]:
        import jax  # reading results does without
        import jax.numpy as jnp

        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        truth = self._members(labels)  # all zeros where a pixel is ignored
        counts = truth.sum(axis=(1, 2))
        pixels = counts.sum(axis=-1)
        cross_entropy = -(truth * log_p).sum(axis=(1, 2, 3)) / jnp.maximum(pixels, 1)

        p = jnp.exp(log_p) * (labels != IGNORE)[..., None]
        overlap = (p * truth).sum(axis=(1, 2))
        # One pixel is added to both, so that an image without a class asks for no pixel of it.
        dice = (2 * overlap + 1) / (p.sum(axis=(1, 2)) + counts + 1)
        return cross_entropy + 1 - dice[:, 1:].mean(axis=-1)

    def _members(self, classes: Any) -> Any:
        """Membership of each pixel in each class, 0 or 1, `[b, h, w, k]`."""
        return (classes[..., None] == np.arange(len(self.classes))).astype(np.float32)

    def measure(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Count the pixels of each class, `[b, k]`: predicted, true, both; and the loss, `[b]`."""
        labels = resized_maps(batch["labels"], *outputs.shape[1:3])
        truth = self._members(labels)
        predicted = self._members(outputs.argmax(axis=-1)) * (labels != IGNORE)[..., None]
        return {
            "intersection": (predicted * truth).sum(axis=(1, 2)),
            "predicted": predicted.sum(axis=(1, 2)),
            "true": truth.sum(axis=(1, 2)),
            "loss": self._losses(outputs, labels),
        }

    def checked(self, measured: Measured) -> Measured:
        """Convert to float64, or say what is wrong."""
        found = {name: np.asarray(measured[name], np.float64) for name in (*_SUMS, "loss")}
        count = len(found["loss"])
        expected = (count, len(self.classes))
        for name in _SUMS:
            if found[name].shape != expected:
                raise ValueError(f"{name} {found[name].shape}: expected {expected}")
        if not count:
            raise UserError("there are no images to evaluate: expected a split with at least one.")
        diverged = ~np.isfinite(found["loss"])
        if diverged.any():
            raise UserError(
                f"the loss of {int(diverged.sum())} images (first: image {int(diverged.argmax())}"
                " of the split) is not a number: the model has diverged."
            )
        return found

    def values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute every metric for each weighting of the images; undefined ones are NaN."""
        dice, iou = self._per_class(measured, weights)
        seen = measured["true"].sum(axis=0)[1:]
        known = seen + measured["predicted"].sum(axis=0)[1:] > 0
        # A class that no mask shows and some images are given has 0, also where these do not count.
        absent = seen == 0
        return {
            "dice": mean_over(known, np.where(absent, 0.0, dice[:, 1:])),
            "iou": mean_over(known, np.where(absent, 0.0, iou[:, 1:])),
            "loss": weights @ measured["loss"] / weights.sum(axis=1),
        }

    def _per_class(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> tuple[Float[np.ndarray, "s k"], Float[np.ndarray, "s k"]]:
        """Dice and IoU of each class over the pooled pixels."""
        overlap, predicted, true = (weights @ measured[name] for name in _SUMS)
        total = predicted + true
        either = np.where(total > 0, total - overlap, np.nan)
        return 2 * overlap / np.where(total > 0, total, np.nan), overlap / either

    def all_values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute every metric, also of each class, for each weighting of the images."""
        dice, iou = self._per_class(measured, weights)
        of_classes = named_columns(self.classes, {"dice": dice, "iou": iou})
        return self.values(measured, weights) | of_classes

    def evaluate(self, measured: Measured) -> Evaluation:
        """Measure a whole split; `confusion` counts the pixels with and without each class."""
        measured = self.checked(measured)
        count = len(measured["loss"])
        weights = np.ones((1, count))
        values = {name: float(value[0]) for name, value in self.values(measured, weights).items()}
        dice, iou = (found[0] for found in self._per_class(measured, weights))
        support = (measured["true"] > 0).sum(axis=0)
        per_class = {
            name: {"support": int(support[c]), "dice": float(dice[c]), "iou": float(iou[c])}
            for c, name in enumerate(self.classes)
        }
        both, predicted, true = (measured[name].sum(axis=0) for name in _SUMS)
        neither = true.sum() - predicted - true + both
        table = np.stack([neither, predicted - both, true - both, both], axis=-1)
        return Evaluation(
            task=self.name,
            classes=self.classes,
            count=count,
            values=values,
            per_class=per_class,
            confusion=table.reshape(-1, 2, 2).astype(np.int64),
            undefined=undefined_in(values, per_class),
        )

    def kinds(self, measured: Measured) -> Bool[np.ndarray, "n m"]:
        """Presence of each class in the masks."""
        return measured["true"] > 0

    def truth(self, measured: Measured) -> np.ndarray:
        """Pixels of each class in the masks."""
        return measured["true"]

    def keep(self, path: Path, measured: Measured, rows: Rows) -> None:
        """Write a CSV: id, group (where there are groups), loss, and the pixels of each class.

        The columns of a class are `overlap_<class>`, `predicted_<class>` and `true_<class>`.
        """
        columns: dict[str, Any] = {"id": rows.ids}
        if rows.groups is not None:
            columns["group"] = rows.groups
        columns["loss"] = [f"{value:.9g}" for value in measured["loss"]]
        for c, name in enumerate(self.classes):
            for pixels, prefix in _SUMS.items():
                columns[f"{prefix}_{name}"] = measured[pixels][:, c].astype(np.int64)
        table = [columns, *zip(*columns.values(), strict=True)]
        atomic.write_bytes(path, atomic.csv_bytes(table, end="\r\n"))

    def read(self, path: Path) -> tuple[Measured, Rows]:
        """Read a file that `keep` wrote; `UserError` if it is missing or something else."""
        if not path.is_file():
            raise UserError(f"{path} does not exist: expected the table of a finished run.")
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file, strict=True))
            measured = {
                pixels: np.array(
                    [[float(line[f"{prefix}_{name}"]) for name in self.classes] for line in lines]
                ).reshape(-1, len(self.classes))
                for pixels, prefix in _SUMS.items()
            }
            measured["loss"] = np.array([float(line["loss"]) for line in lines])
            groups = [line["group"] for line in lines] if lines and "group" in lines[0] else None
            return measured, Rows([line["id"] for line in lines], groups)
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise UserError(
                f"{path} is not the table of classes {', '.join(self.classes)}"
                f" ({type(error).__name__}: {error}); expected the file as the run wrote it."
            ) from error
