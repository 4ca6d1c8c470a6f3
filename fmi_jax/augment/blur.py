"""Gaussian blur."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.augment.crop import map_rows_and_columns
from fmi_jax.augment.uniform import between


def sigmas_from_uniform(
    numbers: Float[Array, "b 2"], probability: float, sigma: tuple[float, float]
) -> Float[Array, " b"]:
    """Draw standard deviations, uniform in the range `sigma` (pixels); 0 means no blur.

    Args:
      numbers: uniform numbers in [0, 1): one decides on the blur, one on its strength.
      probability: probability of a blur.
      sigma: range of the standard deviation, in pixels.
    """
    return jnp.where(numbers[:, 0] < probability, between(numbers[:, 1], *sigma), 0.0)


def gaussian_blur(
    images: Float[Array, "b h w c"], sigmas: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Blur each image with a standard deviation of `sigmas` pixels; 0 leaves it unchanged.

    Same as torchvision's `gaussian_blur` (edges are mirrored) with a kernel wide enough for the
    whole Gaussian. The study's PIL `GaussianBlur` uses three box filters instead of the Gaussian
    and repeats edge pixels; it differs by half of one of 255 grey levels on average, up to 9 at the
    edges.
    """
    rows, columns = (_blurring(sigmas, side) for side in images.shape[1:3])
    return map_rows_and_columns(images, rows, columns)


def _blurring(sigmas: Float[Array, " b"], size: int) -> Float[Array, "b size size"]:
    """Weights of the Gaussian; those of pixels beyond an edge are added to their mirror images."""
    sigmas = jnp.maximum(sigmas, 0.01)[:, None, None]  # 0.01 changes nothing
    target, source = jnp.arange(size)[:, None], jnp.arange(size)

    def weight(position: Array) -> Array:
        return jnp.exp(-0.5 * jnp.square((position - target) / sigmas))

    before, after = -source, 2 * (size - 1) - source  # the edge pixel itself has no mirror image
    weights = weight(source)
    weights += jnp.where(source > 0, weight(before), 0.0)
    weights += jnp.where(source < size - 1, weight(after), 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)
