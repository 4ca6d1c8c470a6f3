"""How the label of an image is stored, whatever it means."""

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np


class Label(enum.Enum):
    """Form of the label of one image.

    Attributes:
      INDEX: index of its class, int32 `[]`.
      VECTOR: value from 0 to 1 for each class, float32 `[k]`.
    """

    INDEX = enum.auto()
    VECTOR = enum.auto()

    @property
    def dtype(self) -> type[np.generic]:
        """Type of a label's numbers."""
        return np.int32 if self is Label.INDEX else np.float32

    def shape(self, num_classes: int) -> tuple[int, ...]:
        """Shape of one label."""
        return () if self is Label.INDEX else (num_classes,)

    def array(self, labels: Sequence[Any]) -> np.ndarray:
        """Labels of several images, `[n]` or `[n, k]`."""
        return np.asarray(labels, self.dtype)


def task_name(label: Label, classes: Sequence[str]) -> str:
    """Name of the task that labels of this form are for, as manifests and results hold it."""
    if label is Label.VECTOR:
        return "multilabel"
    return "binary" if len(classes) == 2 else "multiclass"


def label_of(task: str) -> Label:
    """Form of the labels that a task takes; manifests name the task alone."""
    return Label.VECTOR if task == "multilabel" else Label.INDEX


def class_membership(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Membership of each image in each class, 0 to 1, `[n, k]`, from labels of either form."""
    return labels if labels.ndim > 1 else np.eye(num_classes, dtype=np.float32)[labels]
