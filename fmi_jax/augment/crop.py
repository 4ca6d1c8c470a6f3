"""Crops, resizing and flips, as linear maps of rows and columns."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmi_jax.augment.uniform import between

TRIES = 10  # number of boxes tried, as in torchvision


def center_crop(images: Array, fraction: float) -> Array:
    """Crop images `[b, h, w, c]` to the central `fraction` of both sides (0.875: 224 of 256)."""
    height, width = images.shape[1:3]
    h, w = crop_size(height, width, fraction)
    top, left = round((height - h) / 2), round((width - w) / 2)
    return images[:, top : top + h, left : left + w]


def crop_size(height: int, width: int, fraction: float) -> tuple[int, int]:
    """Compute height and width of a crop to a `fraction` of both sides."""
    return max(1, round(fraction * height)), max(1, round(fraction * width))


def crop_boxes_from_uniform(
    numbers: Float[Array, "b 22"],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Int[Array, "b 4"]:
    """Draw boxes (top, left, height, width) as torchvision's `RandomResizedCrop` does.

    Area (relative to the image) and log aspect ratio are uniform. The first of ten tries that fits
    in the image is taken, else the largest central box with an allowed ratio. A scale above 1 is
    intended: such a draw seldom fits, so the whole image is used often.

    Args:
      numbers: uniform numbers in [0, 1): areas, aspects and the place of the box.
      height, width: size of the image, in pixels.
      scale, ratio: ranges of area and aspect.
    """
    area, log_aspect, place = jnp.split(numbers, (TRIES, 2 * TRIES), axis=1)
    area = height * width * between(area, *scale)
    aspect = jnp.exp(between(log_aspect, math.log(ratio[0]), math.log(ratio[1])))
    tries = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], axis=-1)
    tries = jnp.round(tries).astype(jnp.int32)  # [b, tries, 2]: height, width
    whole = jnp.array([height, width])
    fits = jnp.all((tries > 0) & (tries <= whole), axis=-1)

    if width / height < ratio[0]:
        central = jnp.array([max(1, round(width / ratio[0])), width])
    elif width / height > ratio[1]:
        central = jnp.array([height, max(1, round(height * ratio[1]))])
    else:
        central = whole
    return jnp.where(
        fits.any(axis=1, keepdims=True),
        first_box(tries, fits, place, whole),
        jnp.concatenate([(whole - central) // 2, central]),
    )


def first_box(
    tries: Int[Array, "b t 2"],
    fits: Bool[Array, "b t"],
    place: Float[Array, "b 2"],
    whole: Int[Array, " 2"],
) -> Int[Array, "b 4"]:
    """Box (top, left, height, width) of the first size that fits in `whole`, placed at `place`.

    The box is meaningless if no size fits.
    """
    first = jnp.argmax(fits, axis=1)
    size = jnp.take_along_axis(tries, first[:, None, None], axis=1)[:, 0]
    corner = jnp.floor(place * (whole - size + 1)).astype(jnp.int32)
    return jnp.concatenate([corner, size], axis=1)


def zooms_from_uniform(
    numbers: Float[Array, "b 4"], probability: float, side: tuple[float, float], size: int
) -> Int[Array, "b 4"]:
    """Draw squares (top, left, height, width) as albumentations' `RandomSizedCrop` does.

    Args:
      numbers: uniform numbers in [0, 1): one decides on the zoom, one on the side, two on the
        place.
      probability: probability of a square that is not the whole image.
      side: range of the side relative to the image's; all whole numbers in it are as likely.
      size: side of the image, in pixels.
    """
    least, most = (max(1, round(share * size)) for share in side)
    sides = least + jnp.floor(numbers[:, 1:2] * (most - least + 1))
    corners = jnp.floor(numbers[:, 2:] * (size - sides + 1))
    squares = jnp.concatenate([corners, sides, sides], axis=1)
    drawn = jnp.where(numbers[:, :1] < probability, squares, jnp.array([0, 0, size, size]))
    return drawn.astype(jnp.int32)


def resize(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b s s c"]:
    """Resize to `size` x `size`, bilinear with antialias; images of that size stay unchanged."""
    batch, height, width, _ = images.shape
    if (height, width) == (size, size):
        return images
    boxes = jnp.tile(jnp.array([0, 0, height, width]), (batch, 1))
    return resized_crop(images, boxes, jnp.zeros((batch, 2), bool), size)


def resized_crop(
    images: Float[Array, "b h w c"],
    boxes: Int[Array, "b 4"],
    flips: Bool[Array, "b 2"],
    size: int,
) -> Float[Array, "b s s c"]:
    """Crop the box of each image, resize to `size` x `size` (bilinear, antialias), then flip.

    Args:
      images: float images.
      boxes: top, left, height, width in pixels, within the image.
      flips: vertical flip, horizontal flip.
      size: side of the result in pixels.
    """
    rows = _resampling(boxes[:, 0], boxes[:, 2], flips[:, 0], images.shape[1], size)
    columns = _resampling(boxes[:, 1], boxes[:, 3], flips[:, 1], images.shape[2], size)
    return map_rows_and_columns(images, rows, columns)


def map_rows_and_columns(
    images: Float[Array, "b h w c"], rows: Float[Array, "b i h"], columns: Float[Array, "b j w"]
) -> Float[Array, "b i j c"]:
    """Apply one matrix to the rows and one to the columns of each image, without a gather.

    Everything linear and separable (crop, resize, flip, blur) is two batched matrix products.
    """
    # HIGHEST, because by default GPU and TPU would round weights and pixels to 10 or to 7 bits.
    return jnp.einsum(
        "bih,bhwc,bjw->bijc", rows, images, columns, precision=jax.lax.Precision.HIGHEST
    )


def _resampling(
    start: Int[Array, " b"],
    length: Int[Array, " b"],
    flip: Bool[Array, " b"],
    old_size: int,
    new_size: int,
) -> Float[Array, "b new old"]:
    """Triangle-filter weights that resample pixels `start` to `start + length` to `new_size`."""
    start, length, flip = (x[:, None, None] for x in (start, length, flip))
    target = jnp.arange(new_size)[:, None]
    target = jnp.where(flip, new_size - 1 - target, target)
    source = jnp.arange(old_size) - start
    # Distance of pixel centres, times 2 * new_size: whole numbers, so it is exact.
    distance = jnp.abs((2 * source + 1) * new_size - (2 * target + 1) * length)
    weights = jnp.maximum(0.0, 1.0 - distance / (2 * jnp.maximum(length, new_size)))
    weights = jnp.where((source >= 0) & (source < length), weights, 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)
