"""The words that every part of the program shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

if TYPE_CHECKING:  # it imports jax, which reading data and results does without
    from jaxtyping import Array, Float


class Features(NamedTuple):
    """What a backbone hands to a head.

    Attributes:
      pooled: vector that a linear head or kNN reads, `[b, f]`.
      tokens: spatial grid, prefix tokens removed, `[b, h, w, d]`; a stacked classifier reads it.
      cls: the [cls] token, `[b, d]`, where the family has one.
    """

    pooled: Float[Array, "b f"]
    tokens: Float[Array, "b h w d"]
    cls: Float[Array, "b d"] | None


class Batch(TypedDict):
    """One batch as the loader yields it (numpy) and the jitted steps take it.

    `inputs` uint8 images `[b, h, w, c]` as prepared; `labels` int32 `[b]`, or float32 `[b, k]` for
    multi-label, or uint8 `[b, h, w]` for masks; `mask` float32 `[b]`, 0 for padding; `index` int32
    `[b]`, the row of the split (-1 for padding), which leads back to the image's id.
    """

    inputs: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class Rows(NamedTuple):
    """Facts about the images of a split beside their labels, in the order of its rows.

    Attributes:
      ids: id of each image.
      groups: patient, lesion or study of each image; None where the data name none.
      columns: further facts about each image (sex, age, site) by column; empty texts are missing.
    """

    ids: Sequence[str]
    groups: Sequence[str] | None = None
    columns: Mapping[str, Sequence[str]] = {}
