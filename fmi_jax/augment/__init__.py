"""Augmentation and normalisation of uint8 batches, on the device, inside the jitted step.

The order is the study's: centre crop, random resized crop, vertical and
horizontal flip, rotation, colour jitter, tone, grayscale, Gaussian blur, affine map, perspective,
distortion, zoom, solarization, normalisation, random erasing. Tone, distortion and zoom are
albumentations' operations, each other one is the torchvision operation of that name, on float
images in 0..1, a function of explicit parameters, one per image of the batch. The studies ran them
on 8-bit images, which loses fractions of 1/255 after every operation; here nothing is rounded.

All functions are pure, with static shapes and no loop over the batch. The result for an image
depends on its own key alone, not on the rest of the batch.
"""

from fmi_jax.augment.evaluation_views import (
    check_views,
    count_views,
    over_flips,
    over_ten_crops,
    over_windows,
)
from fmi_jax.augment.maps import batch_augmentation, check_label
from fmi_jax.augment.multi_crop import View, dino_views, each_view, stack_by_size, views
from fmi_jax.augment.pipeline import augment, prepare_eval
from fmi_jax.augment.soft_labels import with_redrawn_labels

__all__ = [
    "View",
    "augment",
    "batch_augmentation",
    "check_label",
    "check_views",
    "count_views",
    "dino_views",
    "each_view",
    "over_flips",
    "over_ten_crops",
    "over_windows",
    "prepare_eval",
    "stack_by_size",
    "views",
    "with_redrawn_labels",
]
