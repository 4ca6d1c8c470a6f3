"""How the label of an image is stored, whatever it means."""

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np

IGNORE = 255
"""Value of the pixels of a map that count neither in a loss nor in a metric."""

MOST_LAYERS = 7
"""Most classes of masks that overlap: with a bit for each, no pixel has the value `IGNORE`."""


class Label(enum.StrEnum):
    """Form of the label of one image, by its name in manifests.

    Attributes:
      INDEX: index of its class, int32 `[]`.
      VECTOR: value from 0 to 1 for each class, or NaN where it is not known, float32 `[k]`.
      MAP: index of the class of each pixel, uint8 `[h, w]`, or `IGNORE`; class 0 is the background.
      LAYERS: classes of each pixel, any number of them, uint8 `[h, w]` with bit `c` for class `c`,
        or `IGNORE`; none of the classes is the background.
      NONE: nothing, float32 `[0]`: a value for each of no classes.
    """

    INDEX = "index"
    VECTOR = "vector"
    MAP = "map"
    LAYERS = "layers"
    NONE = "none"

    @property
    def words(self) -> str:
        """Name of such labels in messages."""
        return {
            Label.INDEX: "one class per image",
            Label.VECTOR: "several classes per image",
            Label.MAP: "masks",
            Label.LAYERS: "masks that overlap",
            Label.NONE: "no labels",
        }[self]

    @property
    def dtype(self) -> type[np.generic]:
        """Type of a label's numbers."""
        if self.of_pixels:
            return np.uint8
        return np.int32 if self is Label.INDEX else np.float32

    @property
    def of_pixels(self) -> bool:
        """Whether each pixel has a label: a map, which moves with its image."""
        return self in (Label.MAP, Label.LAYERS)

    @property
    def background(self) -> int:
        """Number of classes, the first ones, that are no finding: the background of a map."""
        return int(self is Label.MAP)

    @property
    def padding(self) -> int:
        """Number that fills the labels of padding."""
        return IGNORE if self.of_pixels else 0

    def shape(self, num_classes: int, size: int = 0) -> tuple[int, ...]:
        """Shape of one label; only that of a map depends on the `size` of the image."""
        if self.of_pixels:
            return (size, size)
        return () if self is Label.INDEX else (num_classes,)

    def array(self, labels: Sequence[Any]) -> np.ndarray:
        """Stack the labels of several images in an index: `[n]`, or for each class `[n, k]`.

        An index holds no maps, but for each class whether the map has it (0 or 1). Its null is NaN.
        """
        return np.asarray(labels, np.int32 if self is Label.INDEX else np.float32)

    def pixels_of(self, maps: Any, c: Any) -> Any:
        """Find the pixels of class `c` in maps, NumPy's or JAX's; `IGNORE` is of none.

        Args:
          maps: maps in this form, of any shape.
          c: class, or an array of classes that broadcasts against the maps.
        """
        if self is Label.MAP:
            return maps == c
        return ((maps >> c) & 1 > 0) & (maps != IGNORE)

    def map_of(self, scores: Any) -> Any:
        """Make maps `[...]` of scores 0 to 1, `[..., k]`: probabilities, or memberships.

        A map has the class of the highest score, the first of several; layers have every class
        whose score is above one half.
        """
        if self is Label.MAP:
            return scores.argmax(axis=-1).astype(np.uint8)
        bits = (1 << np.arange(scores.shape[-1])).astype(np.uint8)
        return ((scores > 0.5) * bits).sum(axis=-1).astype(np.uint8)


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
