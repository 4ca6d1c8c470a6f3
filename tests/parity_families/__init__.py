"""The families that the parity tool runs, by their name in `meta.json`."""

from collections.abc import Mapping

from parity_families import (
    blip,
    convnext,
    deit,
    dinov2,
    focal_transformer,
    focalnet,
    open_clip,
    resnet,
    saliency,
    sam,
    seem,
    stacked,
    swin,
    unet,
)
from parity_families.family import Family

FAMILIES: Mapping[str, Family] = {
    "blip": blip.FAMILY,
    "convnext": convnext.FAMILY,
    "deit": deit.FAMILY,
    "dinov2": dinov2.FAMILY,
    "focal_transformer": focal_transformer.FAMILY,
    "focalnet": focalnet.FAMILY,
    "seem_focalnet": seem.FAMILY,
    "open_clip": open_clip.FAMILY,
    "gradcam": saliency.GRAD_CAM,
    "resnet": resnet.FAMILY,
    "saliency_vit": saliency.ATTENTION,
    "sam": sam.FAMILY,
    "stacked_classifier": stacked.FAMILY,
    "swin": swin.FAMILY,
    "unet": unet.FAMILY,
}
