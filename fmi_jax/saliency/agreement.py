"""Agreement of maps with masks: does a network look where something is?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Agreement(NamedTuple):
    """Agreement of the map of each image with its mask.

    Attributes:
      pointing: 1 if the largest value is inside the mask (the pointing game); where several pixels
        have it, the share of them that is.
      energy: share of the map's sum that is inside.
      precision: average precision of the pixels, those inside being the positives.
    """

    pointing: Float[np.ndarray, "n"]
    energy: Float[np.ndarray, "n"]
    precision: Float[np.ndarray, "n"]


def agreement(found: Float[np.ndarray, "n h w"], inside: Bool[np.ndarray, "n h w"]) -> Agreement:
    """Compare maps without negative values with masks, none of which is empty.

    A map that is 0 everywhere points nowhere: it is taken for one that is the same everywhere.
    """
    from sklearn.metrics import average_precision_score  # slow to import, and needed here alone

    pixels = found.shape[1] * found.shape[2]  # -1 would not do for no images
    maps = found.reshape(-1, pixels).astype(np.float64)
    maps[~maps.any(axis=1)] = 1
    masks = inside.reshape(-1, pixels)
    largest = maps == maps.max(axis=1, keepdims=True)
    return Agreement(
        pointing=(largest & masks).sum(axis=1) / largest.sum(axis=1),
        energy=(maps * masks).sum(axis=1) / maps.sum(axis=1),
        precision=np.array(
            [average_precision_score(*one) for one in zip(masks, maps, strict=True)], np.float64
        ),
    )


def centred(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Map that looks at the centre of any image: a Gaussian, a quarter of a side its deviation."""
    rows, cols = ((np.arange(n) + 0.5) / n - 0.5 for n in (height, width))
    return np.exp(-8 * (rows[:, None] ** 2 + cols**2))


def standard_error(values: Float[np.ndarray, "n"], member: Int[np.ndarray, "n"]) -> float:
    """Standard error of the mean of values that are independent between groups alone.

    Args:
      values: value of each image.
      member: each image's group, numbered from 0.

    Returns:
      Standard error; NaN with fewer than two groups.
    """
    sums = np.bincount(member, values - values.mean())
    groups = len(sums)
    if groups < 2:
        return float("nan")
    return float(np.sqrt(groups / (groups - 1) * (sums**2).sum()) / len(values))
