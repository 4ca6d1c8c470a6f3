"""Segmentation: which class each pixel of an image shows, or which classes where masks overlap.

Of classes that exclude each other the first is the background, which no mean counts. Of classes
that overlap none is; each has a probability of its own, and is predicted above one half.

Everything is measured at the size of the logits, to which a prepared mask is resized (nearest
pixel): that of the network's input or, seen in windows, of the prepared image; never at the size of
the original image. Pixels of `IGNORE` count nowhere.

Dice and IoU come in three kinds.

* Pooled: the pixels of all images are added up first, so an image with a large lesion weighs more
  than one with a small lesion, and one without any still counts, by its false alarms. A class that
  is neither in the predictions nor in the masks of the weighted images has no value (NaN); the
  means are over the foreground classes that have one when every image counts.
* Per image: the mean over all images. Where a class is neither predicted nor true an image has 1,
  which flatters a set of many images without a lesion.
* Where present: the mean over the images whose mask has the class.

Distances of outlines, and lesions found or not, need whole images on the host (`outlines`): maps
of the classes go there after each step and are let go. They are measured of a finished network.
While it trains they are not, unless one of them chooses its best step.
"""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from fmi_jax import atomic
from fmi_jax.artifacts.evaluation import Evaluation, named_columns, undefined_in
from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.errors import UserError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.base import Measured, Metric, Objective, Task
from fmi_jax.tasks.mask_loss import mask_loss, members, probabilities
from fmi_jax.tasks.outlines import TOLERANCE, Outlined, outlined_classes
from fmi_jax.tasks.weighted import mean_over
from fmi_jax.types import Rows

_SUMS = {"intersection": "overlap", "predicted": "predicted", "true": "true"}
"""Pixels counted for each class of an image, with the prefix of their columns."""

_OUTLINED = ("hausdorff_95", "surface_dice", "lesion_sensitivity", "lesion_precision")
"""Metrics that are made of `Outlined`."""

_NEWER = ("pixels", *Outlined._fields)
"""Measurements that runs of older versions have not kept."""


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """One class for each pixel: a softmax over logits `[b, h, w, k]`."""

    name = "segmentation"
    label = Label.MAP
    selects = "dice"
    file = "segmentation.csv"
    shown = ("dice", "iou", "dice_where_present", "surface_dice", "hausdorff_95")
    per_class: ClassVar[Mapping[str, str]] = {
        "support": "Images",
        "dice": "Dice",
        "iou": "IoU",
        "dice_where_present": "Dice where present",
        "surface_dice": "Surface Dice",
        "hausdorff_95": "Hausdorff 95 %",
        "lesion_sensitivity": "Lesions found",
        "lesion_precision": "Right detections",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "dice": Metric(label="Dice (mean over foreground classes)"),
        "iou": Metric(label="IoU (mean over foreground classes)"),
        "dice_per_image": Metric(label="Dice per image"),
        "iou_per_image": Metric(label="IoU per image"),
        "dice_where_present": Metric(label="Dice per image that has the class"),
        "surface_dice": Metric(label=f"Surface Dice at {TOLERANCE:g} pixels"),
        "hausdorff_95": Metric(
            label="Hausdorff distance at 95 %, pixels",
            higher_is_better=False,
            bounds=(0.0, math.inf),
        ),
        "lesion_sensitivity": Metric(label="Lesions found"),
        "lesion_precision": Metric(label="Detections that are lesions"),
        "loss": Metric(
            label="Cross-entropy + soft Dice loss", higher_is_better=False, bounds=(0.0, math.inf)
        ),
    }

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Add the mean cross entropy of the pixels and the soft Dice loss of the foreground."""
        return self.objective(LossConfig(), (), 0).loss(outputs, batch)

    def objective(self, config: LossConfig, counts: Sequence[float], total: ArrayLike) -> Objective:
        """Make the loss of masks."""
        return mask_loss(self.label, self.classes, config, counts, total)

    def measure(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Count the pixels of each class, `[b, k]`: predicted, true, both; with all, and the loss.

        The maps `[b, h, w]` that they are counted on go to `on_host`, and no further.
        """
        labels = resized_maps(batch["labels"], *outputs.shape[1:3])
        known, k = labels != IGNORE, len(self.classes)
        called = self.label.map_of(probabilities(self.label, outputs))
        truth = members(self.label, labels, k)
        predicted = members(self.label, called, k) * known[..., None]
        return {
            "predicted_map": called,
            "true_map": labels.astype(np.uint8),
            "pixels": known.sum(axis=(1, 2)),
            "intersection": (predicted * truth).sum(axis=(1, 2)),
            "predicted": predicted.sum(axis=(1, 2)),
            "true": truth.sum(axis=(1, 2)),
            "loss": self.loss(outputs, batch)[0],
        }

    def on_host(self, measured: Measured, metric: str = "") -> Measured:
        """Measure outlines and lesions of maps, and let go of the maps."""
        found = dict(measured)
        maps = found.pop("predicted_map"), found.pop("true_map")
        if metric and metric not in _OUTLINED:
            return found
        return {**found, **outlined_classes(self.label, *maps, len(self.classes))}

    def checked(self, measured: Measured) -> Measured:
        """Convert to float64, or say what is wrong."""
        names = [*_SUMS, "loss", *(name for name in _NEWER if name in measured)]
        found = {name: np.asarray(measured[name], np.float64) for name in names}
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
        of_classes = self._of_classes(measured, weights)
        first = self.label.background
        seen = measured["true"].sum(axis=0)[first:] > 0
        known = seen | (measured["predicted"].sum(axis=0)[first:] > 0)
        # A class that no mask shows and some images are given has 0, also where these do not count.
        pooled = {
            name: mean_over(known, np.where(seen, of_classes.pop(name)[:, first:], 0.0))
            for name in ("dice", "iou")
        }
        over = {"dice_per_image": known, "iou_per_image": known}
        means = {
            name: mean_over(over.get(name, seen), found[:, first:])
            for name, found in of_classes.items()
        }
        loss = weights @ measured["loss"] / weights.sum(axis=1)
        return {**pooled, **means, "loss": loss}

    def _of_classes(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s k"]]:
        """Compute the metrics of each class, in the order of `metrics`; undefined ones are NaN."""
        overlap, predicted, true = (measured[name] for name in _SUMS)
        either, total = predicted + true - overlap, predicted + true
        dice = ratio(2 * overlap, total, empty=1.0)
        present = true > 0
        found = {
            "dice": ratio(weights @ (2 * overlap), weights @ total),
            "iou": ratio(weights @ overlap, weights @ either),
            "dice_per_image": _mean(weights, dice),
            "iou_per_image": _mean(weights, ratio(overlap, either, empty=1.0)),
            "dice_where_present": _mean(weights, np.where(present, dice, np.nan)),
        }
        if "hausdorff" in measured:
            found |= {
                "surface_dice": _mean(weights, measured["surface"]),
                "hausdorff_95": _mean(weights, measured["hausdorff"]),
                "lesion_sensitivity": ratio(
                    weights @ measured["found"], weights @ measured["lesions"]
                ),
                "lesion_precision": ratio(
                    weights @ measured["right"], weights @ measured["detections"]
                ),
            }
        return found

    def all_values(
        self, measured: Measured, weights: Float[np.ndarray, "s n"]
    ) -> dict[str, Float[np.ndarray, "s"]]:
        """Compute every metric, also of each class, for each weighting of the images."""
        background = self.classes[: self.label.background]
        of_classes = named_columns(self.classes, self._of_classes(measured, weights))
        hidden = {f"{metric}[{name}]" for metric in _OUTLINED for name in background}
        shown = {name: found for name, found in of_classes.items() if name not in hidden}
        return self.values(measured, weights) | shown

    def evaluate(self, measured: Measured) -> Evaluation:
        """Measure a whole split; `confusion` counts the pixels with and without each class."""
        measured = self.checked(measured)
        count = len(measured["loss"])
        weights = np.ones((1, count))
        values = {name: float(value[0]) for name, value in self.values(measured, weights).items()}
        of_classes = self._of_classes(measured, weights)
        support = (measured["true"] > 0).sum(axis=0)
        per_class = {
            name: {"support": int(support[c])}
            | {
                metric: float(found[0, c])
                for metric, found in of_classes.items()
                if c >= self.label.background or metric not in _OUTLINED
            }
            for c, name in enumerate(self.classes)
        }
        both, predicted, true = (measured[name].sum(axis=0) for name in _SUMS)
        pixels = measured.get("pixels", measured["true"].sum(axis=1)).sum()
        neither = pixels - predicted - true + both
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

    def image_dice(self, measured: Measured) -> Float[np.ndarray, "n"]:
        """Compute the mean Dice of each image over the foreground classes true or predicted there.

        It is 1 where there are none.
        """
        first = self.label.background
        total = (measured["predicted"] + measured["true"])[:, first:]
        dice = ratio(2 * measured["intersection"][:, first:], total, empty=0.0)
        return ratio(dice.sum(axis=1), (total > 0).sum(axis=1), empty=1.0)

    def kinds(self, measured: Measured) -> Bool[np.ndarray, "n m"]:
        """Presence of each class in the masks."""
        return measured["true"] > 0

    def truth(self, measured: Measured) -> np.ndarray:
        """Pixels of each class in the masks."""
        return measured["true"]

    def keep(self, path: Path, measured: Measured, rows: Rows) -> None:
        """Write a CSV: id, group (where there are groups), loss, pixels, and columns of each class.

        These are its pixels `overlap_<class>`, `predicted_<class>` and `true_<class>`, and for the
        foreground the fields of `Outlined`, such as `hausdorff_<class>`.
        """
        columns: dict[str, Any] = {"id": rows.ids}
        if rows.groups is not None:
            columns["group"] = rows.groups
        columns["loss"] = [f"{value:.9g}" for value in measured["loss"]]
        if "pixels" in measured:
            columns["pixels"] = measured["pixels"].astype(np.int64)
        for c, name in enumerate(self.classes):
            for pixels, prefix in _SUMS.items():
                columns[f"{prefix}_{name}"] = measured[pixels][:, c].astype(np.int64)
            for field in Outlined._fields:
                if c >= self.label.background and field in measured:
                    columns[f"{field}_{name}"] = [
                        "" if np.isnan(value) else f"{value:.9g}" for value in measured[field][:, c]
                    ]
        table = [columns, *zip(*columns.values(), strict=True)]
        atomic.write_bytes(path, atomic.csv_bytes(table, end="\r\n"))

    def read(self, path: Path) -> tuple[Measured, Rows]:
        """Read a file that `keep` wrote; `UserError` if it is missing or something else."""
        if not path.is_file():
            raise UserError(f"{path} does not exist: expected the table of a finished run.")
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = atomic.csv_lines(file)
            measured = {
                pixels: np.array(
                    [[float(line[f"{prefix}_{name}"]) for name in self.classes] for line in lines]
                ).reshape(-1, len(self.classes))
                for pixels, prefix in _SUMS.items()
            }
            measured["loss"] = np.array([float(line["loss"]) for line in lines])
            # Runs of older versions have kept neither the pixels nor what outlines say.
            if lines and "pixels" in lines[0]:
                measured["pixels"] = np.array([float(line["pixels"]) for line in lines])
            for field in Outlined._fields:
                if lines and f"{field}_{self.classes[-1]}" in lines[0]:
                    measured[field] = np.array(
                        [
                            [float(line.get(f"{field}_{name}") or "nan") for name in self.classes]
                            for line in lines
                        ]
                    )
            groups = [line["group"] for line in lines] if lines and "group" in lines[0] else None
            return measured, Rows([line["id"] for line in lines], groups)
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise UserError(
                f"{path} is not the table of classes {', '.join(self.classes)}"
                f" ({type(error).__name__}: {error}); expected the file as the run wrote it."
            ) from error


@dataclasses.dataclass(frozen=True)
class MultilabelSegmentation(Segmentation):
    """Any number of classes for each pixel: a sigmoid for each of the logits `[b, h, w, k]`."""

    name = "multilabel_segmentation"
    label = Label.LAYERS
    exclusive = False


def ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
    """Divide; `empty` where the denominator is 0."""
    some = denominator > 0
    return np.where(some, numerator / np.where(some, denominator, 1), empty)


def _mean(
    weights: Float[np.ndarray, "s n"], each: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "s k"]:
    """Weighted mean over the images that have a value."""
    known = ~np.isnan(each)
    return ratio(weights @ np.where(known, each, 0.0), weights @ known)
