"""Random erasing."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmi_jax.augment.crop import CROP_NUMBERS, TRIES, first_box
from fmi_jax.augment.uniform import between

ERASE_NUMBERS = 1 + CROP_NUMBERS
_RATIO = (0.3, 3.3)  # of height to width: torchvision's, not symmetric


def erase_boxes_from_uniform(
    numbers: Float[Array, "b 23"],
    probability: float,
    area: tuple[float, float],
    height: int,
    width: int,
) -> Int[Array, "b 4"]:
    """Boxes (top, left, height, width) of torchvision's `RandomErasing`.

    Area and log aspect ratio are uniform; of ten tries the first that is smaller than the image
    in both directions is taken. Where none is, or nothing is to be erased, the box is empty.

    Args:
      numbers: uniform in [0, 1): whether at all, areas, aspects and the place of the box.
      probability: of erasing.
      area: range of the area, relative to the image.
      height, width: of the image, in pixels.
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
    """Images with 0 (once normalised, the mean) in the box: top, left, height, width."""
    top, left, height, width = boxes.T[:, :, None]
    row, column = (jnp.arange(side) for side in images.shape[1:3])
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0.0, images)
