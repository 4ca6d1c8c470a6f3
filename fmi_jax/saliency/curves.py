"""Deletion and insertion curves: does a class hang on the pixels that a map ranks first?

RISE, arXiv 1806.07421, section 4. No masks are needed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmi_jax.nn import resize

STEPS = 20
"""Parts of equal size in which the pixels of an image are exchanged."""


def deletion_and_insertion(
    probability: Callable[[Float[Array, "b h w c"]], Float[Array, "b"]],
    images: Float[Array, "b h w c"],
    found: Float[Array, "b maps h w"],
) -> Float[Array, "b maps 2 points"]:
    """Compute the probability of a class while pixels are exchanged in the order of maps.

    Deletion exchanges those of the image for 0, the mean of the data set, the largest value of the
    map first; insertion those of the blurred image for the image's own. Pixels of one value come
    row by row.

    Args:
      probability: function that computes the probability of each image's class.
      images: images as the network reads them.
      found: maps at the size of the images.

    Returns:
      Probabilities of each image, map and kind, from no exchanged pixel to all (`STEPS + 1`).
    """
    b, h, w, _ = images.shape
    courses = (
        jnp.stack([images, blurred(images)]),
        jnp.stack([jnp.zeros_like(images), images]),
    )
    exchanged = jnp.asarray(np.round(np.linspace(0, h * w, STEPS + 1)), jnp.int32)

    def of_map(one: Float[Array, "b h w"]) -> Array:
        order = jnp.argsort(-one.reshape(b, h * w), axis=1)
        rank = jnp.argsort(order, axis=1).reshape(b, h, w, 1)

        def of_course(course: tuple[Array, Array]) -> Array:
            before, after = course
            return jax.lax.map(
                lambda count: probability(jnp.where(rank < count, after, before)), exchanged
            )

        return jax.lax.map(of_course, courses)

    return jnp.moveaxis(jax.lax.map(of_map, jnp.moveaxis(found, 1, 0)), 3, 0)


def blurred(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Blur images with the Gaussian of RISE, 11 pixels wide at 224 pixels with deviation 5."""
    rows, cols = map(_gaussian, images.shape[1:3])
    return resize.resize(images, rows, cols).astype(images.dtype)


def _gaussian(side: int) -> np.ndarray:
    reach = max(round(5 * side / 224), 1)
    distance = np.arange(side)[:, None] - np.arange(side)
    weights = np.exp(-((distance / reach) ** 2) / 2) * (np.abs(distance) <= reach)
    return weights / weights.sum(axis=1, keepdims=True)


def area(curves: Float[np.ndarray, "*n points"]) -> Float[np.ndarray, "*n"]:
    """Area under curves whose points are at equal distances from 0 to 1."""
    return (curves[..., 1:] + curves[..., :-1]).mean(axis=-1) / 2
