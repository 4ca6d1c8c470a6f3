"""The words that every part of the program shares."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

if TYPE_CHECKING:  # it imports jax, which reading data and results does without
    from jaxtyping import Array, Float


class Task(enum.StrEnum):
    """What a label means, and therefore which loss and which metrics apply.

    BINARY and MULTICLASS have one integer label per image and a softmax over the classes
    (the studies train two-class sets with two logits); MULTILABEL has one 0/1 per class
    and a sigmoid for each.
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"


class Features(NamedTuple):
    """What a backbone hands to a head.

    Attributes:
      pooled: what a linear head or kNN reads, `[b, f]`.
      tokens: the spatial grid, prefix tokens removed, `[b, h, w, d]`; what a stacked
        classifier reads.
      cls: the [cls] token, `[b, d]`, where the family has one.
    """

    pooled: Float[Array, "b f"]
    tokens: Float[Array, "b h w d"]
    cls: Float[Array, "b d"] | None


class Batch(TypedDict):
    """One batch as the loader yields it (numpy) and the jitted steps take it.

    `inputs` uint8 images `[b, h, w, c]` as prepared; `labels` int32 `[b]`, or float32 `[b, k]` for
    multi-label; `mask` float32 `[b]`, 0 for padding; `index` int32 `[b]`, the row of the split
    (-1 for padding), which leads back to the image's id.
    """

    inputs: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    index: np.ndarray
