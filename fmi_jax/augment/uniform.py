"""Scaling of uniform numbers in [0, 1), from which every random choice is made."""

from jaxtyping import Array


def between(uniform: Array, low: Array | float, high: Array | float) -> Array:
    """Scale numbers in 0..1 to `low`..`high`."""
    return low + uniform * (high - low)
