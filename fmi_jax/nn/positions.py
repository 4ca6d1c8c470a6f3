"""Position embeddings for another grid than they were trained on."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmi_jax.nn.resize import resize

Kernel = Callable[..., np.ndarray]
"""One of the cubic kernels of `nn.resize`: `(old, new, step=)` to a matrix `[new, old]`."""


def resize_positions(
    table: Float[Array, "*one n d"],
    old: tuple[int, int],
    new: tuple[int, int],
    kernel: Kernel,
    *,
    prefix: int = 1,
    offset: float = 0.0,
) -> Float[Array, "*one m d"]:
    """The table for `new` rows and columns of patches, from the one for `old`.

    Args:
      table: positions of the prefix tokens, kept as they are, then of the patches row by row.
      old: rows and columns it was trained on.
      new: grid that is wanted; if it is `old`, the table itself is returned.
      kernel: resampling of each axis.
      prefix: number of prefix tokens.
      offset: patches added to a side of `new` where the distance of two samples is computed.
    """
    if new == old:
        return table
    rows, cols = (kernel(a, b, step=a / (b + offset)) for a, b in zip(old, new, strict=True))
    *one, _, d = table.shape
    patches = resize(table[..., prefix:, :].reshape(*old, d), rows, cols)
    return jnp.concatenate([table[..., :prefix, :], patches.reshape(*one, -1, d)], axis=-2)
