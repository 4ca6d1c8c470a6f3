"""All key layouts by name."""

from fmi_jax.models.base import Backbone, BackboneSpec
from fmi_jax.registry import Registry
from weights_convert.engine import Layout
from weights_convert.layouts import (
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
from weights_convert.stacked import StackedArch, foundation_layouts, stacked_layouts

# Where two layouts name every parameter alike, the first one is reported.
LAYOUTS: Registry[Layout] = Registry(
    "layout",
    (
        deit.LAYOUT,
        deit.HF,
        dinov2.TIMM,
        dinov2.LAYOUT,
        dinov2.CHUNKED,
        dinov2.HF,
        focalnet.LAYOUT,
        focalnet.HF,
        focalnet.TIMM,
        seem.LAYOUT,
        sam.LAYOUT,
        sam.HF,
        sam.TIMM,
        open_clip.LAYOUT,
        open_clip.HF,
        open_clip.TIMM,
        blip.LAYOUT,
        blip.MOMENTUM,
        blip.HF,
        *resnet.LAYOUTS,
        resnet.HF,
        swin.LAYOUT,
        swin.TIMM,
        swin.HF,
        focal_transformer.LAYOUT,
        convnext.LAYOUT,
        convnext.DINOV3,
        convnext.TIMM,
        convnext.TIMM_POINTWISE,
        convnext.HF,
        convnext.DINOV3_HF,
    ),
)


def layouts_of(family: type[Backbone]) -> tuple[Layout, ...]:
    """The layouts that weights of `family` come in: published, or saved by the study."""
    published = tuple(layout for layout in LAYOUTS.values() if layout.family is family)
    return published + foundation_layouts(published)


def layouts_for(spec: BackboneSpec) -> tuple[Layout, ...]:
    """List the layouts of a backbone; those of a stacked classifier follow from its parts."""
    if isinstance(spec.arch, StackedArch):
        return stacked_layouts(spec.arch, LAYOUTS.values())
    return layouts_of(spec.family)
