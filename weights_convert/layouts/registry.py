"""All key layouts by name."""

from fmi_jax.models.base import Backbone, BackboneSpec
from fmi_jax.registry import Registry
from weights_convert.engine import Layout
from weights_convert.layouts import (
    blip,
    blip_hf,
    deit,
    deit_hf,
    dinov2,
    dinov2_hf,
    dinov2_timm,
    focal_transformer,
    focalnet,
    focalnet_hf,
    focalnet_timm,
    open_clip,
    open_clip_hf,
    open_clip_timm,
    resnet,
    resnet_hf,
    sam,
    sam_hf,
    sam_timm,
    seem,
    swin,
    swin_hf,
)
from weights_convert.stacked import StackedArch, foundation_layouts, stacked_layouts

# Where two layouts name every parameter alike, the first one is reported.
LAYOUTS: Registry[Layout] = Registry(
    "layout",
    (
        deit.LAYOUT,
        deit_hf.LAYOUT,
        dinov2_timm.LAYOUT,
        dinov2.LAYOUT,
        dinov2.CHUNKED,
        dinov2_hf.LAYOUT,
        focalnet.LAYOUT,
        focalnet_hf.LAYOUT,
        focalnet_timm.LAYOUT,
        seem.LAYOUT,
        sam.LAYOUT,
        sam_hf.LAYOUT,
        sam_timm.LAYOUT,
        open_clip.LAYOUT,
        open_clip_hf.LAYOUT,
        open_clip_timm.LAYOUT,
        blip.LAYOUT,
        blip.MOMENTUM,
        blip_hf.LAYOUT,
        *resnet.LAYOUTS,
        resnet_hf.LAYOUT,
        swin.LAYOUT,
        swin.TIMM,
        swin_hf.LAYOUT,
        focal_transformer.LAYOUT,
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
