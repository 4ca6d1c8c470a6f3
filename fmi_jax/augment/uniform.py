"""What every random choice is made of: uniform numbers in [0, 1)."""

from jaxtyping import Array


def between(uniform: Array, low: Array | float, high: Array | float) -> Array:
    """Numbers in 0..1 stretched to `low`..`high`."""
    return low + uniform * (high - low)
