"""Boxes around findings in an image, and the masks they are drawn as."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

BOXES = "boxes"
"""Column of the index of a data set that was prepared with boxes."""


class Box(NamedTuple):
    """Box around a finding, in shares of the image's width and height.

    Attributes:
      name: finding.
      left, top: upper left corner.
      width, height: sides.
    """

    name: str
    left: float
    top: float
    width: float
    height: float


def to_text(boxes: Sequence[Box]) -> str:
    """Text of the boxes of an image, as an index holds it; "" for none."""
    return json.dumps(boxes) if boxes else ""


def from_text(text: str) -> tuple[Box, ...]:
    """Invert `to_text`."""
    return tuple(Box(*values) for values in json.loads(text or "[]"))


def box_mask(boxes: Sequence[Box], size: int) -> UInt8[np.ndarray, "size size"]:
    """Draw boxes over an image stretched to `size`: 1 for pixels whose centre is in one, else 0."""
    mask, centre = np.zeros((size, size), np.uint8), (np.arange(size) + 0.5) / size
    for box in boxes:
        rows = (box.top <= centre) & (centre < box.top + box.height)
        cols = (box.left <= centre) & (centre < box.left + box.width)
        mask[np.ix_(rows, cols)] = 1
    return mask
