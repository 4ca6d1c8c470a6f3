"""Metrics and loss of masks, as the third study and scikit-learn define them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmi_jax.settings import LossConfig
from fmi_jax.tasks.segmentation import Segmentation

Arrays = Mapping[str, np.ndarray]


def segmentation_metrics(config: Mapping[str, Any], inputs: Arrays) -> Arrays:
    """Measure probabilities `[n, c, h, w]` of masks that may overlap, each one of two classes.

    Nothing has an overlap of 1 there, which is undefined here, and the study's Dice loss counts
    all masks as the images of one batch.
    """
    del config
    p, true = inputs["probabilities"], inputs["mask"]
    n, channels = p.shape[:2]
    task = Segmentation(("background", "class"))
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(np.stack([1 - p, p], axis=-1)), -1e30)
    one = {
        c: task.on_host(
            jax.tree.map(
                np.asarray,
                jax.jit(task.measure)(logits[:, c], {"labels": true[:, c].astype(np.uint8)}),
            ),
            "dice",
        )
        for c in range(channels)
    }
    found = [task.evaluate(one[c]) for c in range(channels)]
    tables = np.stack([each.confusion[1] for each in found])  # [c, true, predicted]
    (tn, fp), (fn, tp) = np.moveaxis(tables, 0, -1)

    def of_class(name: str) -> np.ndarray:
        return np.array([each.per_class["class"].get(name, np.nan) for each in found])

    def share(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(a + b > 0, a / np.where(a + b > 0, a + b, 1), np.nan)

    both, called, truth = (
        np.stack([one[c][name][:, 1] for c in range(channels)], axis=1).astype(int)
        for name in ("intersection", "predicted", "true")
    )
    pixels = p[0, 0].size
    every = {
        name: np.concatenate([one[c][name] for c in range(channels)])
        for name in ("intersection", "predicted", "true", "loss")
    }
    over_all = task.evaluate(every).per_class["class"]
    loss = task.objective(LossConfig(terms="dice", dice_over="batch"), (), 0).loss
    batch = {
        "labels": jnp.asarray(true.reshape(-1, *true.shape[2:]), jnp.uint8),
        "mask": jnp.ones(n * channels),
    }
    values: dict[str, Any] = {
        "counts_per_image/tp": both,
        "counts_per_image/fp": called - both,
        "counts_per_image/fn": truth - both,
        "counts_per_image/tn": pixels - called - truth + both,
        "sensitivity_global_per_class": share(tp, fn),
        "specificity_global_per_class": share(tn, fp),
        "precision_global_per_class": share(tp, fp),
        "pixel_accuracy": (tp + tn).sum() / (n * channels * pixels),
        "soft_dice_loss_smooth1": loss(jnp.asarray(logits).reshape(-1, *logits.shape[2:]), batch)[
            0
        ][0],
    }
    for name in ("dice", "iou"):
        pooled = _one(of_class(name))
        per_image = _one(of_class(f"{name}_per_image"))
        values[f"{name}_per_image"] = _per_image(task, one, name)
        values[f"{name}_global_per_class"] = pooled
        values[f"{name}_mean_per_image_per_class"] = per_image
        values[f"{name}_global_mean_over_classes"] = pooled.mean()
        values[f"{name}_mean_per_image_mean_over_classes"] = per_image.mean()
        values[f"{name}_global_all"] = _one(np.array(over_all[name]))
    return {f"expected/{name}": np.asarray(value) for name, value in values.items()}


def _one(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), 1.0, values)


def _per_image(task: Segmentation, one: Mapping[int, Arrays], name: str) -> np.ndarray:
    """Values `[n, c]` of single images, each the only one that counts."""
    columns = []
    for measured in one.values():
        weights = np.eye(len(measured["loss"]))
        found = task.all_values(task.checked(measured), weights)
        columns.append(found[f"{name}_per_image[class]"])
    return np.stack(columns, axis=1)
