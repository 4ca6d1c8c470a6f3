"""Measures of two masks that need the whole image: distances of outlines, and lesions.

They are made on the host, one image after the other, by SciPy's distance transform and labels.
Distances are in pixels.

* The outline of a mask are its pixels with a neighbour above, below, left or right that is not in
  it; beyond the edge of the image nothing is.
* Hausdorff distance at 95 %: the larger of the 95th percentiles of the distances from each outline
  to the other (arXiv 2206.01653, "HD95"). If one mask alone is empty it is the diagonal of the
  image, which no distance exceeds; of two empty masks there is none (NaN).
* Surface Dice: share of the pixels of both outlines that are at most `TOLERANCE` from the other
  outline (arXiv 1809.04430); 0 if one mask alone is empty, and NaN of two empty ones.
* A lesion is a part of the mask whose pixels touch, by their corners too. One of the truth is found
  if any pixel of it is predicted; one of the prediction is right if any pixel of it is true.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from fmi_jax.data.labels import IGNORE, Label

TOLERANCE = 2.0
"""Distance up to which outlines agree, in pixels."""

_CORNERS = np.ones((3, 3), bool)


class Outlined(NamedTuple):
    """Measures of a predicted and a true mask.

    Attributes:
      hausdorff: Hausdorff distance at 95 % in pixels.
      surface: surface Dice.
      lesions, found: number of true lesions, and of those that are found.
      detections, right: number of predicted lesions, and of those that are right.
    """

    hausdorff: float
    surface: float
    lesions: int
    found: int
    detections: int
    right: int


def outlined(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> Outlined:
    """Measure two masks of one class."""
    some_predicted, some_true = predicted.any(), true.any()
    if not (some_predicted and some_true):
        alone = some_predicted or some_true
        return Outlined(
            hausdorff=float(np.hypot(*true.shape)) if alone else np.nan,
            surface=0.0 if alone else np.nan,
            lesions=_count(true),
            found=0,
            detections=_count(predicted),
            right=0,
        )
    # What is outside of both masks' bounding box changes no distance.
    (box,) = ndimage.find_objects((predicted | true).astype(np.uint8))
    predicted, true = predicted[box], true[box]
    there, back = _distances(predicted, true), _distances(true, predicted)
    lesions, found = _touched(true, predicted)
    detections, right = _touched(predicted, true)
    near = np.count_nonzero(there <= TOLERANCE) + np.count_nonzero(back <= TOLERANCE)
    return Outlined(
        hausdorff=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        surface=near / (len(there) + len(back)),
        lesions=lesions,
        found=found,
        detections=detections,
        right=right,
    )


def outlined_classes(
    label: Label,
    predicted: UInt8[np.ndarray, "n h w"],
    true: UInt8[np.ndarray, "n h w"],
    num_classes: int,
) -> Mapping[str, Float[np.ndarray, "n k"]]:
    """Measure maps of classes: `Outlined` of each class by the names of its fields.

    Pixels whose truth is `IGNORE` are in no mask. The background has no measures (NaN).
    """
    found = np.full((len(true), num_classes, len(Outlined._fields)), np.nan, np.float32)
    for row, (called, truth) in enumerate(zip(predicted, true, strict=True)):
        known = truth != IGNORE
        for c in range(label.background, num_classes):
            found[row, c] = outlined(label.pixels_of(called, c) & known, label.pixels_of(truth, c))
    return dict(zip(Outlined._fields, np.moveaxis(found, -1, 0), strict=True))


def _distances(
    one: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "p"]:
    """Distance of each pixel of an outline to the nearest pixel of another."""
    distances: Any = ndimage.distance_transform_edt(~_outline(other))
    return distances[_outline(one)]


def _outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    eroded: Any = ndimage.binary_erosion(mask)
    return mask & ~eroded


def _count(mask: Bool[np.ndarray, "h w"]) -> int:
    return connected(mask)[1]


def _touched(mask: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Number of the lesions of a mask, and of those that another mask touches."""
    parts, count = connected(mask)
    return count, len(np.unique(parts[other & mask]))


def connected(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], int]:
    """Number the connected parts of a mask from 1, the pixels of none 0; and count them."""
    found: Any = ndimage.label(mask, _CORNERS)
    return found
