"""Soft labels that are drawn anew each time an image is seen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def redraw(
    keys: Key[Array, " b"], labels: Float[Array, "b k"], low: float, high: float
) -> Float[Array, "b k"]:
    """Draw every label between 0 and 1 anew, uniform in `low`..`high`; 0, 1 and NaN stay.

    Args:
      keys: random keys, one per image.
      labels: labels of several classes.
      low, high: range of a draw.
    """
    # A stream apart from the augmentation's, which takes the key itself and its first branch.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    drawn = jax.vmap(
        lambda key: jax.random.uniform(key, labels.shape[1:], minval=low, maxval=high)
    )(keys)
    return jnp.where((labels > 0) & (labels < 1), drawn, labels)


def with_redrawn_labels(
    augment: Callable[[Any, dict[str, Any]], dict[str, Any]], low: float, high: float
) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """Make an augmentation `(keys, batch) -> batch` that draws soft labels anew as well.

    Args:
      augment: augmentation to extend.
      low, high: range of a soft label; 0 and 0: labels stay as they are.
    """
    if not high:
        return augment

    def augmented(keys: Any, batch: dict[str, Any]) -> dict[str, Any]:
        batch = augment(keys, batch)
        return batch | {"labels": redraw(keys, batch["labels"], low, high)}

    return augmented
