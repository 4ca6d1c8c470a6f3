"""How the label of an image is stored, whatever it means."""

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np

IGNORE = 255
"""Value of the pixels of a map that count neither in a loss nor in a metric."""


class Label(enum.StrEnum):
    """Form of the label of one image, by its name in manifests.

    Attributes:
      INDEX: index of its class, int32 `[]`.
      VECTOR: value from 0 to 1 for each class, or NaN where it is not known, float32 `[k]`.
      MAP: index of the class of each pixel, uint8 `[h, w]`, or `IGNORE`; class 0 is the background.
      NONE: nothing, float32 `[0]`: a value for each of no classes.
    """

    INDEX = "index"
    VECTOR = "vector"
    MAP = "map"
    NONE = "none"

    @property
    def words(self) -> str:
        """Name of such labels in messages."""
        return {
            Label.INDEX: "one class per image",
            Label.VECTOR: "several classes per image",
            Label.MAP: "masks",
            Label.NONE: "no labels",
        }[self]

    @property
    def dtype(self) -> type[np.generic]:
        """Type of a label's numbers."""
        return {Label.INDEX: np.int32, Label.MAP: np.uint8}.get(self, np.float32)

    @property
    def padding(self) -> int:
        """Number that fills the labels of padding."""
        return IGNORE if self is Label.MAP else 0

    def shape(self, num_classes: int, size: int = 0) -> tuple[int, ...]:
        """Shape of one label; only that of a map depends on the `size` of the image."""
        return {Label.INDEX: (), Label.MAP: (size, size)}.get(self, (num_classes,))

    def array(self, labels: Sequence[Any]) -> np.ndarray:
        """Stack the labels of several images in an index: `[n]`, or for each class `[n, k]`.

        An index holds no maps, but for each class whether the map has it (0 or 1). Its null is NaN.
        """
        return np.asarray(labels, np.int32 if self is Label.INDEX else np.float32)


def class_membership(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Membership of each image in each class, 0 to 1 or NaN, `[n, k]`, from `Label.array`."""
    return labels if labels.ndim > 1 else np.eye(num_classes, dtype=np.float32)[labels]


def disagree(labels: Sequence[Any]) -> bool:
    """Test whether labels of one form contradict each other; what is not known contradicts none."""
    values = np.asarray(labels, np.float64)
    return bool((np.fmax.reduce(values) > np.fmin.reduce(values)).any())


def resized_maps(maps: Any, height: int, width: int) -> Any:
    """Resize maps `[b, h, w]`, NumPy's or JAX's: each pixel takes the class at its centre."""
    if maps.shape[1:] == (height, width):
        return maps
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(maps.shape[1:], (height, width), strict=True)
    )
    return maps[:, rows][:, :, columns]
