"""The augmentation pipeline: all operations in order, for training and for evaluation."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from fmi_jax.augment.blur import gaussian_blur, sigmas_from_uniform
from fmi_jax.augment.color import (
    change_tone,
    color_jitter,
    grayscale,
    jitter_from_uniform,
    jitter_ops,
    solarize,
    tones_from_uniform,
)
from fmi_jax.augment.crop import (
    TRIES,
    center_crop,
    crop_boxes_from_uniform,
    resize,
    resized_crop,
    zooms_from_uniform,
)
from fmi_jax.augment.distort import distort, draw_field
from fmi_jax.augment.erase import erase, erase_boxes_from_uniform
from fmi_jax.augment.warp import (
    affine,
    affine_from_uniform,
    angles_from_uniform,
    corners_from_uniform,
    perspective,
    rotate,
)
from fmi_jax.errors import UsageError
from fmi_jax.settings import AugmentConfig

# Count of random numbers per image, as the functions that take them have it in their types. Append
# new entries at the end, so that earlier values stay.
_NUMBERS = {
    "crop": 2 * TRIES + 2,
    "flip": 2,
    "jitter": 9,
    "rotation": 2,
    "grayscale": 1,
    "blur": 2,
    "affine": 6,
    "perspective": 9,
    "solarize": 1,
    "erase": 2 * TRIES + 3,
    "tone": 4,
    "zoom": 4,
}


class Augmentation(NamedTuple):
    """Random choices for each image of a batch.

    Attributes:
      boxes: top, left, height and width of the random crop, in pixels of the centre crop.
      flips: vertical flip, horizontal flip.
      angles: rotation angles, in degrees counter-clockwise.
      factors: strength of each operation of `jitter_ops`; 1 (hue: 0) changes nothing.
      order: indices of these operations, the first one to apply first.
      grey: True if the image becomes grey.
      sigmas: standard deviation of the blur in pixels; 0: none.
      affine: parameters of the affine map; see `affine`.
      corners: positions to which the perspective moves the corners; see `perspective`.
      solarized: True if bright values are inverted.
      erased: top, left, height and width of the erased box.
      field: place that each pixel of a distorted image shows; None where no image is distorted.
      tones: parameters of `change_tone`; None where no tone changes.
      zooms: top, left, height and width of the square that is enlarged; None where none is.
    """

    boxes: Int[Array, "b 4"]
    flips: Bool[Array, "b 2"]
    angles: Float[Array, " b"]
    factors: Float[Array, "b n"]
    order: Int[Array, "b n"]
    grey: Bool[Array, " b"]
    sigmas: Float[Array, " b"]
    affine: Float[Array, "b 5"]
    corners: Float[Array, "b 4 2"]
    solarized: Bool[Array, " b"]
    erased: Int[Array, "b 4"]
    field: Float[Array, "b s s 2"] | None = None
    tones: Float[Array, "b 3"] | None = None
    zooms: Int[Array, "b 4"] | None = None


def augment(
    keys: Key[Array, " b"],
    images: UInt8[Array, "b h w c"],
    config: AugmentConfig,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> Float[Array, "b s s c"]:
    """Augment and normalise training images.

    Args:
      keys: random keys, one per image.
      images: prepared images, 0..255.
      config: probabilities and strengths; operations that are off are not compiled.
      image_size: side in pixels of the result.
      mean, std: statistics of the data set, per channel, for pixels in 0..1.
      dtype: type of the result; everything before is float32.

    Raises:
      UsageError: `mean` or `std` do not fit the channels, or colour operations are asked for
        on images that have neither 1 nor 3 channels.
    """
    cropped = center_crop(images, config.center_crop)
    _, height, width, channels = cropped.shape
    drawn = draw_augmentation(keys, config, height, width, channels, image_size)
    return apply_augmentation(unit(cropped), drawn, config, image_size, mean, std).astype(dtype)


def prepare_eval(
    images: UInt8[Array, "b h w c"],
    config: AugmentConfig,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> Float[Array, "b s s c"]:
    """Prepare evaluation images: centre crop, resize if it is not `image_size`, normalise.

    Arguments and errors are those of `augment`.
    """
    cropped = unit(center_crop(images, config.center_crop))
    return normalize(resize(cropped, image_size), mean, std).astype(dtype)


def draw_augmentation(
    keys: Key[Array, " b"],
    config: AugmentConfig,
    height: int,
    width: int,
    channels: int,
    image_size: int,
) -> Augmentation:
    """Draw a random `Augmentation` for each key.

    Switching one operation off does not change the random numbers of the others.

    Args:
      keys: random keys, one per image.
      config: probabilities and ranges.
      height, width, channels: shape of the images before the random crop.
      image_size: side of the images after the random crop, in pixels.
    """
    # One call of the generator: each takes half a second to compile on CPU.
    *ends, total = accumulate(_NUMBERS.values())
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (total,)))(keys)
    of = dict(zip(_NUMBERS, jnp.split(numbers, ends, axis=1), strict=True))
    factors, order = jitter_from_uniform(of["jitter"], config, channels)
    return Augmentation(
        boxes=crop_boxes_from_uniform(
            of["crop"], height, width, config.crop_scale, config.crop_ratio
        ),
        flips=of["flip"] < jnp.array([config.flip_vertical, config.flip_horizontal]),
        angles=angles_from_uniform(
            of["rotation"], config.rotation_probability, config.rotation_degrees
        ),
        factors=factors,
        order=order,
        grey=of["grayscale"][:, 0] < config.grayscale_probability,
        sigmas=sigmas_from_uniform(of["blur"], config.blur_probability, config.blur_sigma),
        affine=affine_from_uniform(
            of["affine"],
            config.affine_probability,
            config.affine_degrees,
            config.affine_translate,
            config.affine_scale,
            config.affine_shear,
            image_size,
            image_size,
        ),
        corners=corners_from_uniform(
            of["perspective"],
            config.perspective_probability,
            config.perspective_distortion,
            image_size,
            image_size,
        ),
        field=(
            draw_field(
                jax.vmap(jax.random.fold_in)(keys, jnp.zeros(len(keys), jnp.int32)),
                config.distort_probability,
                config.distortions,
                image_size,
            )
            if config.distort_probability
            else None
        ),
        tones=(
            tones_from_uniform(of["tone"], config.tone_probability, config.tone_strength)
            if config.tone_probability
            else None
        ),
        zooms=(
            zooms_from_uniform(of["zoom"], config.zoom_probability, config.zoom_side, image_size)
            if config.zoom_probability
            else None
        ),
        solarized=of["solarize"][:, 0] < config.solarize_probability,
        erased=erase_boxes_from_uniform(
            of["erase"], config.erase_probability, config.erase_area, image_size, image_size
        ),
    )


def apply_augmentation(
    images: Float[Array, "b h w c"],
    augmentation: Augmentation,
    config: AugmentConfig,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Array, "b s s c"]:
    """Apply the operations that `config` asks for to `images` in 0..1, and normalise."""
    height, width, channels = images.shape[1:]
    images = (
        resized_crop(images, augmentation.boxes, augmentation.flips, image_size)
        if is_cropped(config, height, width)
        else resize(images, image_size)
    )
    if config.rotation_probability:
        images = rotate(images, augmentation.angles)
    if ops := jitter_ops(config, channels):
        images = color_jitter(images, augmentation.factors, augmentation.order, ops)
    if augmentation.tones is not None:
        images = change_tone(images, augmentation.tones)
    if config.grayscale_probability:
        images = grayscale(images, augmentation.grey)
    if config.blur_probability:
        images = gaussian_blur(images, augmentation.sigmas)
    if config.affine_probability:
        images = affine(images, augmentation.affine)
    if config.perspective_probability:
        images = perspective(images, augmentation.corners)
    if augmentation.field is not None:
        images = distort(images, augmentation.field)
    if augmentation.zooms is not None:
        still = jnp.zeros((len(images), 2), bool)
        images = resized_crop(images, augmentation.zooms, still, image_size)
    if config.solarize_probability:
        images = solarize(images, augmentation.solarized)
    images = normalize(images, mean, std)
    return erase(images, augmentation.erased) if config.erase_probability else images


def is_cropped(config: AugmentConfig, height: int, width: int) -> bool:
    """Test whether `config` crops or flips images of this size, beyond resizing them."""
    ranges = {height / width, *config.crop_scale, *config.crop_ratio}
    return ranges != {1} or config.flip_vertical > 0 or config.flip_horizontal > 0


def normalize(
    images: Float[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w c"]:
    """Compute `(images - mean) / std` per channel; `UsageError` unless both fit the channels."""
    channels = images.shape[-1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise UsageError(
            f"mean {tuple(mean)} and std {tuple(std)} do not fit the images: expected one value"
            f" for each of {channels} channels, and std above 0."
        )
    return (images - jnp.array(mean)) / jnp.array(std)


def unit(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Scale pixels from 0..255 to 0..1."""
    return images.astype(jnp.float32) / 255
