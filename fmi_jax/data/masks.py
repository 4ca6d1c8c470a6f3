"""Masks of prepared images, whether they are the labels or boxes beside other labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from fmi_jax.data.boxes import BOXES, box_mask, from_text
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import PreparedDataset


def masked_rows(dataset: PreparedDataset, split: str) -> list[int]:
    """Find the images that have a mask: all in a set of masks, else those with a box."""
    if dataset.info.label is Label.MAP:
        return list(range(len(dataset.ids(split))))
    return [row for row, line in enumerate(dataset.lines(split)) if line.get(BOXES)]


def masks_of(
    dataset: PreparedDataset, split: str, rows: Sequence[int]
) -> UInt8[np.ndarray, "n size size"]:
    """Read the masks of images: their labels in a set of masks, else 1 within their boxes."""
    if dataset.info.label is Label.MAP:
        images = dataset.split(split)
        return np.stack([images[row][1] for row in rows])
    lines = dataset.lines(split)
    boxes = [from_text(lines[row].get(BOXES, "")) for row in rows]
    return np.stack([box_mask(some, dataset.info.size) for some in boxes])
