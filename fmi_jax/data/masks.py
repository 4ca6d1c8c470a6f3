"""Masks of prepared images, whether they are the labels or boxes beside other labels."""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from fmi_jax.data.boxes import BOXES, box_mask, from_text
from fmi_jax.data.prepared import PreparedDataset, prepare_command
from fmi_jax.errors import UserError

PIXELS = "pixels"
"""Column of the index that counts the pixels of each class in a prepared mask, as JSON."""


def masked_rows(dataset: PreparedDataset, split: str) -> list[int]:
    """Find the images that have a mask: all in a set of masks, else those with a box."""
    if dataset.info.label.of_pixels:
        return list(range(len(dataset.ids(split))))
    return [row for row, line in enumerate(dataset.lines(split)) if line.get(BOXES)]


def masks_of(
    dataset: PreparedDataset, split: str, rows: Sequence[int]
) -> UInt8[np.ndarray, "n size size"]:
    """Read the masks of images: their labels in a set of masks, else 1 within their boxes."""
    if dataset.info.label.of_pixels:
        images = dataset.split(split)
        return np.stack([images[row][1] for row in rows])
    lines = dataset.lines(split)
    boxes = [from_text(lines[row].get(BOXES, "")) for row in rows]
    return np.stack([box_mask(some, dataset.info.size) for some in boxes])


def pixel_counts(dataset: PreparedDataset, split: str) -> Int[np.ndarray, "n k"]:
    """Read how many pixels of each class the prepared mask of every image of a split has.

    Raises:
      UserError: an older version prepared the set, and did not count them.
    """
    lines = dataset.lines(split)
    if not are_counted(dataset):
        raise UserError(
            f"{dataset.folder} does not say how many pixels each class has, for an older version"
            f" prepared it: prepare it again with {prepare_command(dataset.folder)}"
            " --overwrite."
        )
    counts = [json.loads(line[PIXELS]) for line in lines]
    return np.array(counts, np.int64).reshape(-1, len(dataset.info.classes))


def are_counted(dataset: PreparedDataset) -> bool:
    """Test whether the pixels of each class are known, as empty masks are in the same format."""
    return "empty_masks" in dataset.manifest
