"""Maps of classes that move with their images through the augmentation.

Geometry is that of the images with the nearest pixel in place of interpolation, and `IGNORE` in
place of black outside the image. Colours, blur and erasing leave a map unchanged: an erased lesion
is still to be found from what is around it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from fmi_jax.augment.distort import distort_nearest
from fmi_jax.augment.pipeline import (
    Augmentation,
    apply_augmentation,
    augment,
    draw_augmentation,
    is_cropped,
    unit,
)
from fmi_jax.augment.warp import affine, perspective_nearest, rotate
from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.errors import UsageError
from fmi_jax.settings import AugmentConfig


def check_label(config: AugmentConfig, label: Label) -> None:
    """Raise `UsageError` if `config` does not suit labels of this form."""
    if label.of_pixels and config.center_crop != 1:
        raise UsageError(
            f"augment.center_crop={config.center_crop}: an evaluation would not see the rim of the"
            " masks; expected 1.0 for a data set with masks."
        )


def batch_augmentation(
    label: Label,
    config: AugmentConfig,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> Callable[[jax.Array, dict[str, Any]], dict[str, Any]]:
    """Make the function `(keys, batch) -> batch` that augments "inputs", and maps with them.

    Args:
      label: form of the labels; only those of a `MAP` change.
      config, image_size, mean, std, dtype: arguments of `augment`.

    Raises:
      UsageError: `config` does not suit the labels.
    """
    check_label(config, label)

    def images_alone(keys: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        images = augment(keys, batch["inputs"], config, image_size, mean, std, dtype)
        return batch | {"inputs": images}

    def images_and_maps(keys: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        images, maps = batch["inputs"], batch["labels"]
        _, height, width, channels = images.shape
        drawn = draw_augmentation(keys, config, height, width, channels, image_size)
        images = apply_augmentation(unit(images), drawn, config, image_size, mean, std)
        moved = move_maps(maps, drawn, config, image_size)
        return batch | {"inputs": images.astype(dtype), "labels": moved}

    return images_and_maps if label.of_pixels else images_alone


def move_maps(
    maps: UInt8[Array, "b h w"],
    augmentation: Augmentation,
    config: AugmentConfig,
    image_size: int,
) -> UInt8[Array, "b s s"]:
    """Apply the geometry of `apply_augmentation` to maps."""
    maps = (
        _crop(maps, augmentation.boxes, augmentation.flips, image_size)
        if is_cropped(config, *maps.shape[1:])
        else resized_maps(maps, image_size, image_size)
    )
    # Outside an image is 0, so 0 has to stand for `IGNORE` here.
    shifted = (IGNORE - maps.astype(jnp.float32))[..., None]
    if config.rotation_probability:
        shifted = rotate(shifted, augmentation.angles)
    if config.affine_probability:
        shifted = affine(shifted, augmentation.affine)
    if config.perspective_probability:
        shifted = perspective_nearest(shifted, augmentation.corners)
    if augmentation.field is not None:
        shifted = distort_nearest(shifted, augmentation.field)
    moved = (IGNORE - shifted[..., 0]).astype(jnp.uint8)
    if augmentation.zooms is not None:
        still = jnp.zeros((len(moved), 2), bool)
        moved = _crop(moved, augmentation.zooms, still, image_size)
    return moved


def _crop(
    maps: UInt8[Array, "b h w"], boxes: Int[Array, "b 4"], flips: Bool[Array, "b 2"], size: int
) -> UInt8[Array, "b s s"]:
    """Crop the box of each map, resize it to `size` x `size`, then flip; see `resized_crop`."""
    rows = _places(boxes[:, 0], boxes[:, 2], flips[:, 0], maps.shape[1], size)
    columns = _places(boxes[:, 1], boxes[:, 3], flips[:, 1], maps.shape[2], size)
    # Each product picks one pixel, exactly: classes are whole numbers below 256, which bfloat16
    # holds. A TPU would fetch the pixels of a gather one by one.
    picked = jnp.einsum(
        "bih,bhw,bjw->bij", rows, maps.astype(jnp.bfloat16), columns,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return picked.astype(jnp.uint8)


def _places(
    start: Int[Array, " b"],
    length: Int[Array, " b"],
    flip: Bool[Array, " b"],
    old_size: int,
    new_size: int,
) -> Float[Array, "b new old"]:
    """Matrix of zeros and ones that picks the pixel at the centre of each new one."""
    start, length, flip = (x[:, None] for x in (start, length, flip))
    target = jnp.arange(new_size)
    target = jnp.where(flip, new_size - 1 - target, target)
    source = start + (2 * target + 1) * length // (2 * new_size)
    return (source[..., None] == jnp.arange(old_size)).astype(jnp.bfloat16)
