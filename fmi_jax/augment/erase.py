"""Random erasing."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmi_jax.augment.crop import TRIES, first_box
from fmi_jax.augment.uniform import between

_RATIO = (0.3, 3.3)  # height to width: torchvision's range, not symmetric


def erase_boxes_from_uniform(
    numbers: Float[Array, "b 23"],
    probability: float,
    area: tuple[float, float],
    height: int,
    width: int,
) -> Int[Array, "b 4"]:
    """Draw boxes (top, left, height, width) as torchvision's `RandomErasing` does.

    Area and log aspect ratio are uniform. The first of ten tries that is smaller than the image in
    both directions is taken. The box is empty if no try is, or if nothing is to be erased.

    Args:
      numbers: uniform numbers in [0, 1): one decides on erasing, then areas, aspects and the place
        of the box.
      probability: probability of erasing.
      area: range of the area, relative to the image.
      height, width: size of the image, in pixels.
    """
    applied, areas, log_aspect, place = jnp.split(numbers, (1, 1 + TRIES, 1 + 2 * TRIES), axis=1)
    areas = height * width * between(areas, *area)
    aspect = jnp.exp(between(log_aspect, math.log(_RATIO[0]), math.log(_RATIO[1])))
    tries = jnp.stack([jnp.sqrt(areas * aspect), jnp.sqrt(areas / aspect)], axis=-1)
    tries = jnp.round(tries).astype(jnp.int32)  # [b, tries, 2]: height, width
    whole = jnp.array([height, width])
    fits = jnp.all(tries < whole, axis=-1)
    erased = (applied < probability) & fits.any(axis=1, keepdims=True)
    return jnp.where(erased, first_box(tries, fits, place, whole), 0)


def erase(images: Float[Array, "b h w c"], boxes: Int[Array, "b 4"]) -> Float[Array, "b h w c"]:
    """Set the box (top, left, height, width) of each image to 0, the mean of normalised images."""
    top, left, height, width = boxes.T[:, :, None]
    row, column = (jnp.arange(side) for side in images.shape[1:3])
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0.0, images)
