"""Multi-crop: several augmented views of each image, for self-supervised training."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt8

from fmi_jax.augment.pipeline import augment
from fmi_jax.settings import AugmentConfig


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """Augmentation and size of one kind of view.

    Attributes:
      config: augmentation of the image.
      image_size: side of the result, in pixels.
      count: number of such views.
    """

    config: AugmentConfig
    image_size: int
    count: int = 1


def dino_views() -> tuple[View, View, View]:
    """Two global views of 224 pixels and six local ones of 96, as in DINO.

    The numbers are those of the medical_transformers code: the whole prepared image
    without a centre crop, bilinear, no vertical flip. BYOL and SimSiam train on the first two.
    """
    global_1 = AugmentConfig(
        center_crop=1.0,
        crop_scale=(0.4, 1.0),
        flip_vertical=0.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale_probability=0.2,
        blur_probability=1.0,
    )
    global_2 = dataclasses.replace(global_1, blur_probability=0.1, solarize_probability=0.2)
    local = dataclasses.replace(global_1, blur_probability=0.5, crop_scale=(0.05, 0.4))
    return View(global_1, 224), View(global_2, 224), View(local, 96, count=6)


def views(
    keys: Key[Array, " b"],
    images: UInt8[Array, "b h w c"],
    wanted: Sequence[View],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> tuple[Float[Array, "b _ _ c"], ...]:
    """Make one augmented batch for each view of `wanted`, `count` of them where it says so, in
    order.

    Every view has its own random numbers, which depend only on its place among the views and on
    the image's key. Equal views are computed together, so that six cost the compilation of one.
    Other arguments and errors are those of `augment`.
    """
    total = sum(view.count for view in wanted)
    view_keys = jax.vmap(lambda key: jax.random.split(key, total), out_axes=1)(keys)
    results, start = [], 0
    for view in wanted:

        def look(keys: Key[Array, " b"], view: View = view) -> Array:
            return augment(keys, images, view.config, view.image_size, mean, std, dtype)

        alike = jax.vmap(look)(view_keys[start : start + view.count])
        results += [alike[i] for i in range(view.count)]
        start += view.count
    return tuple(results)


def stack_by_size(
    crops: Sequence[Float[Array, "b _ _ c"]],
) -> tuple[Float[Array, "b v _ _ c"], ...]:
    """Stack views of one size along a new axis 1; sizes stay in the order of their first view.

    Never along the batch: rows of a batch that is divided over devices would have to move.
    """
    sizes = dict.fromkeys(crop.shape[1:] for crop in crops)
    return tuple(
        jnp.stack([crop for crop in crops if crop.shape[1:] == size], axis=1) for size in sizes
    )


def each_view(
    network: Callable[[Float[Array, "n _ _ c"]], Float[Array, "n f"]],
    stacks: Sequence[Float[Array, "b _ _ _ c"]],
) -> Float[Array, "b v f"]:
    """Apply a network to every view of every stack, all views of one size in one pass."""
    results = []
    for stack in stacks:
        b, v, *shape = stack.shape
        results.append(network(stack.reshape(b * v, *shape)).reshape(b, v, -1))
    return jnp.concatenate(results, axis=1)
