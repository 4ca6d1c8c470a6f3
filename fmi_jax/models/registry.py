"""All backbones by name."""

from fmi_jax.models import (
    blip,
    convnext,
    deit,
    dinov2,
    focal_transformer,
    focalnet,
    open_clip,
    resnet,
    sam,
    seem,
    swin,
)
from fmi_jax.models.base import BackboneSpec
from fmi_jax.registry import Registry

BACKBONES: Registry[BackboneSpec] = Registry(
    "backbone",
    (
        *deit.SPECS,
        *dinov2.SPECS,
        *resnet.SPECS,
        *focalnet.SPECS,
        *sam.SPECS,
        *seem.SPECS,
        *open_clip.SPECS,
        *blip.SPECS,
        *swin.SPECS,
        *convnext.SPECS,
        *focal_transformer.SPECS,
    ),
)
