"""Augmentation and normalisation of uint8 batches, on the device, inside the jitted step.

The order is the study's (REFERENCE 1.1.3): centre crop, random resized crop, vertical and
horizontal flip, colour jitter, normalisation. Each operation is the torchvision operation of
that name on float images in 0..1, a function of explicit parameters, one per image of the
batch. The study ran torchvision on 8-bit PIL images, which loses fractions of 1/255 after
every operation; here nothing is rounded.

All functions are pure, with static shapes and no loop over the batch; the numbers of an image
depend on its own key alone, not on the batch around it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from fmi_jax.config import AugmentConfig
from fmi_jax.errors import UsageError

_CROP_TRIES = 10
_CROP_NUMBERS = 2 * _CROP_TRIES + 2
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's; they add up to 0.9999


class Augmentation(NamedTuple):
    """What happens to each image of a batch.

    Attributes:
      boxes: top, left, height and width of the random crop, in pixels of the centre crop.
      flips: whether the image is flipped vertically, horizontally.
      factors: strength of each operation of `jitter_ops`; 1 (hue: 0) changes nothing.
      order: which of these operations comes first, second, ...
    """

    boxes: Int[Array, "b 4"]
    flips: Bool[Array, "b 2"]
    factors: Float[Array, "b n"]
    order: Int[Array, "b n"]


def augment(
    keys: Key[Array, " b"],
    images: UInt8[Array, "b h w c"],
    config: AugmentConfig,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> Float[Array, "b s s c"]:
    """Training images: cropped, flipped, jittered, normalised.

    Args:
      keys: one per image.
      images: as prepared, 0..255.
      config: how strongly; what has no strength is left out of the compiled program.
      image_size: side in pixels of the result.
      mean, std: of the data set, per channel, for pixels in 0..1.
      dtype: of the result; everything before is float32.

    Raises:
      UsageError: `mean` or `std` do not fit the channels, or colour jitter is asked for
        images that have neither 1 nor 3 channels.
    """
    cropped = center_crop(images, config.center_crop)
    _, height, width, channels = cropped.shape
    augmentation = draw_augmentation(keys, config, height, width, channels)
    adjusted = apply_augmentation(_unit(cropped), augmentation, config, image_size)
    return normalize(adjusted, mean, std).astype(dtype)


def prepare_eval(
    images: UInt8[Array, "b h w c"],
    config: AugmentConfig,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> Float[Array, "b s s c"]:
    """Evaluation images: the centre crop, resized where it is not `image_size`, normalised.

    Arguments and errors are those of `augment`.
    """
    cropped = _unit(center_crop(images, config.center_crop))
    return normalize(resize(cropped, image_size), mean, std).astype(dtype)


def draw_augmentation(
    keys: Key[Array, " b"], config: AugmentConfig, height: int, width: int, channels: int
) -> Augmentation:
    """A random `Augmentation` for each key, for images of `height` x `width` x `channels`.

    Switching one operation off leaves the numbers of the others as they were.
    """
    # One call of the generator: each takes half a second to compile on CPU.
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (_CROP_NUMBERS + 2 + 9,)))(keys)
    crop, flip, jitter = jnp.split(numbers, (_CROP_NUMBERS, _CROP_NUMBERS + 2), axis=1)
    factors, order = jitter_from_uniform(jitter, config, channels)
    return Augmentation(
        boxes=crop_boxes_from_uniform(crop, height, width, config.crop_scale, config.crop_ratio),
        flips=flip < jnp.array([config.flip_vertical, config.flip_horizontal]),
        factors=factors,
        order=order,
    )


def apply_augmentation(
    images: Float[Array, "b h w c"],
    augmentation: Augmentation,
    config: AugmentConfig,
    image_size: int,
) -> Float[Array, "b s s c"]:
    """`images` in 0..1 after crop, flips and colour jitter."""
    height, width, channels = images.shape[1:]
    ranges = {height / width, *config.crop_scale, *config.crop_ratio}
    if ranges != {1} or config.flip_vertical or config.flip_horizontal:
        images = resized_crop(images, augmentation.boxes, augmentation.flips, image_size)
    else:
        images = resize(images, image_size)
    ops = jitter_ops(config, channels)
    return color_jitter(images, augmentation.factors, augmentation.order, ops) if ops else images


def crop_boxes_from_uniform(
    numbers: Float[Array, "b 22"],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Int[Array, "b 4"]:
    """Boxes (top, left, height, width) of torchvision's `RandomResizedCrop`.

    Area (relative to the image) and log aspect ratio are uniform; of ten tries the first that
    fits in the image is taken, else the largest central box whose ratio is allowed. A scale
    above 1 is meant as it is: such a draw fits seldom, so that the whole image comes often.

    Args:
      numbers: uniform in [0, 1): areas, aspects and the place of the box.
      height, width: of the image, in pixels.
      scale, ratio: ranges of area and aspect.
    """
    area, log_aspect, place = jnp.split(numbers, (_CROP_TRIES, 2 * _CROP_TRIES), axis=1)
    area = height * width * _between(area, *scale)
    aspect = jnp.exp(_between(log_aspect, math.log(ratio[0]), math.log(ratio[1])))
    tries = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], axis=-1)
    tries = jnp.round(tries).astype(jnp.int32)  # [b, tries, 2]: height, width
    whole = jnp.array([height, width])
    fits = jnp.all((tries > 0) & (tries <= whole), axis=-1)
    first = jnp.argmax(fits, axis=1)
    size = jnp.take_along_axis(tries, first[:, None, None], axis=1)[:, 0]
    corner = jnp.floor(place * (whole - size + 1)).astype(jnp.int32)

    if width / height < ratio[0]:
        central = jnp.array([max(1, round(width / ratio[0])), width])
    elif width / height > ratio[1]:
        central = jnp.array([height, max(1, round(height * ratio[1]))])
    else:
        central = whole
    return jnp.where(
        fits.any(axis=1, keepdims=True),
        jnp.concatenate([corner, size], axis=1),
        jnp.concatenate([(whole - central) // 2, central]),
    )


def jitter_from_uniform(
    numbers: Float[Array, "b 9"], config: AugmentConfig, channels: int
) -> tuple[Float[Array, "b n"], Int[Array, "b n"]]:
    """Factors and order of torchvision's `ColorJitter`, for the operations of `jitter_ops`.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], for hue in
    [-strength, strength]; every order is equally likely. With probability
    1 - `jitter_probability` all factors are the ones that change nothing.

    Args:
      numbers: uniform in [0, 1): whether at all, then for all four operations (of which the
        active ones are used) factors and places in the order.
      config: the strengths.
      channels: of the images.
    """
    ops = jitter_ops(config, channels)
    active = jnp.array([list(_ADJUST).index(name) for name in ops], int)
    neutral = jnp.array([0.0 if name == "hue" else 1.0 for name in ops])
    strength = jnp.array([getattr(config, name) for name in ops])
    low = jnp.array([-config.hue if n == "hue" else max(0, 1 - getattr(config, n)) for n in ops])

    applied, factors, places = jnp.split(numbers, (1, 5), axis=1)
    factors = _between(factors[:, active], low, neutral + strength)
    factors = jnp.where(applied < config.jitter_probability, factors, neutral)
    return factors, jnp.argsort(places[:, active], axis=1)


def jitter_ops(config: AugmentConfig, channels: int) -> tuple[str, ...]:
    """Names of the colour operations that `config` asks for on images of so many channels.

    On grey images saturation and hue do nothing, as in torchvision. Other channel counts than
    1 and 3 have no colours to jitter: `UsageError`.
    """
    if config.jitter_probability == 0:
        return ()
    ops = tuple(name for name in _ADJUST if getattr(config, name))
    if ops and channels not in (1, 3):
        raise UsageError(
            f"colour jitter needs images of 1 or 3 channels, these have {channels}:"
            " set augment.jitter_probability=0."
        )
    return ops if channels == 3 else tuple(n for n in ops if n in ("brightness", "contrast"))


def center_crop(images: Array, fraction: float) -> Array:
    """The central `fraction` of both sides of `images` `[b, h, w, c]` (224 of 256 for 0.875)."""
    height, width = images.shape[1:3]
    h, w = max(1, round(fraction * height)), max(1, round(fraction * width))
    top, left = round((height - h) / 2), round((width - w) / 2)
    return images[:, top : top + h, left : left + w]


def resize(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b s s c"]:
    """Whole images at `size` x `size`: bilinear with antialias; themselves if they are already."""
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
    """The box of each image at `size` x `size`, bilinear with antialias, then flipped.

    Rows and columns are separate linear maps: two small matrices per image hold crop, resize
    and flip, and two batched matrix products apply them, without a gather.

    Args:
      images: float.
      boxes: top, left, height, width in pixels, within the image.
      flips: vertical, horizontal.
      size: side of the result in pixels.
    """
    rows = _resampling(boxes[:, 0], boxes[:, 2], flips[:, 0], images.shape[1], size)
    columns = _resampling(boxes[:, 1], boxes[:, 3], flips[:, 1], images.shape[2], size)
    # Highest: by default GPU and TPU would round weights and pixels to 10 or to 7 bits.
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
    """Weights of the triangle filter from pixels `start` to `start + length` to `new_size`."""
    start, length, flip = (x[:, None, None] for x in (start, length, flip))
    target = jnp.arange(new_size)[:, None]
    target = jnp.where(flip, new_size - 1 - target, target)
    source = jnp.arange(old_size) - start
    # Distance of pixel centres, times 2 * new_size: whole numbers, so that it is exact.
    distance = jnp.abs((2 * source + 1) * new_size - (2 * target + 1) * length)
    weights = jnp.maximum(0.0, 1.0 - distance / (2 * jnp.maximum(length, new_size)))
    weights = jnp.where((source >= 0) & (source < length), weights, 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def adjust_brightness(
    images: Float[Array, "b h w c"], factors: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Pixels times factor, clipped to 0..1."""
    return _blend(images, factors, jnp.zeros(images.shape[:3]))


def adjust_contrast(
    images: Float[Array, "b h w c"], factors: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Away from (factor above 1) or towards the mean grey of the image, clipped to 0..1."""
    return _blend(images, factors, jnp.mean(_grey(images), axis=(1, 2), keepdims=True))


def adjust_saturation(
    images: Float[Array, "b h w 3"], factors: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Away from (factor above 1) or towards the grey of each pixel, clipped to 0..1."""
    return _blend(images, factors, _grey(images))


def adjust_hue(
    images: Float[Array, "b h w 3"], shifts: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Hue turned by `shifts` (1: the full circle); saturation and value of HSV stay."""
    red, green, blue = _planes(images)
    high = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = high - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma == 0, 1.0, chroma)
    sixths = jnp.where(
        high == red,
        (green - blue) / divisor,
        jnp.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * shifts[:, None, None]

    # From HSV: each channel runs along the same trapezoid, a third of the circle apart.
    def channel(offset: int) -> Float[Array, "b h w"]:
        turn = sixths + offset
        turn = turn - 6 * jnp.floor(turn / 6)
        return high - chroma * jnp.clip(jnp.minimum(turn, 4 - turn), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


_ADJUST = {  # in torchvision's order
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def color_jitter(
    images: Float[Array, "b h w c"],
    factors: Float[Array, "b n"],
    order: Int[Array, "b n"],
    ops: tuple[str, ...] = tuple(_ADJUST),
) -> Float[Array, "b h w c"]:
    """Colour operations on `images` in 0..1, for each image in its own order.

    Args:
      images: 3 channels, or 1 if `ops` has neither saturation nor hue.
      factors: for each of `ops`, in this order.
      order: a permutation; `order[:, 0]` is the index in `ops` of what is done first.
      ops: names of the operations ("brightness", "contrast", "saturation", "hue").
    """

    # At each step every image needs another operation: all are computed, one is selected. A
    # loop, as unrolled XLA on CPU computes each step again for every use (seconds a batch).
    def step(i: int, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        op = order[:, i]
        factor = jnp.take_along_axis(factors, op[:, None], axis=1)[:, 0]
        result = images
        for index, name in enumerate(ops):
            chosen = (op == index)[:, None, None, None]
            result = jnp.where(chosen, _ADJUST[name](images, factor), result)
        return result

    return jax.lax.fori_loop(0, len(ops), step, images)


def normalize(
    images: Float[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w c"]:
    """`(images - mean) / std` per channel; `UsageError` unless both fit the channels."""
    channels = images.shape[-1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise UsageError(
            f"mean {tuple(mean)} and std {tuple(std)} do not fit the images: expected one value"
            f" for each of {channels} channels, and std above 0."
        )
    return (images - jnp.array(mean)) / jnp.array(std)


def _between(uniform: Array, low: Array | float, high: Array | float) -> Array:
    """Numbers in 0..1 stretched to `low`..`high`."""
    return low + uniform * (high - low)


def _unit(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pixels 0..255 as 0..1."""
    return images.astype(jnp.float32) / 255


def _planes(images: Float[Array, "b h w c"]) -> list[Float[Array, "b h w"]]:
    """The channels one by one: XLA on CPU vectorises them much better than the last axis."""
    return [images[..., i] for i in range(images.shape[-1])]


def _grey(images: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """Luma of colour images; grey images as they are."""
    planes = _planes(images)
    if len(planes) == 1:
        return planes[0]
    red, green, blue = (w * p for w, p in zip(_GREY_WEIGHTS, planes, strict=True))
    return red + green + blue


def _blend(
    images: Float[Array, "b h w c"], factors: Float[Array, " b"], other: Float[Array, "b #h #w"]
) -> Float[Array, "b h w c"]:
    """`factor * image + (1 - factor) * other`, clipped to 0..1."""
    factors = factors[:, None, None]
    other = (1 - factors) * other
    return jnp.stack([jnp.clip(factors * p + other, 0, 1) for p in _planes(images)], axis=-1)
