"""All key layouts by name."""

from fmi_jax.models.base import Backbone
from fmi_jax.registry import Registry
from weights_convert.engine import Layout
from weights_convert.layouts import deit, deit_hf, dinov2, dinov2_hf, dinov2_timm

# Where two layouts name every parameter alike, the first one is reported.
LAYOUTS: Registry[Layout] = Registry(
    "layout",
    (deit.LAYOUT, deit_hf.LAYOUT, dinov2_timm.LAYOUT, dinov2.LAYOUT, dinov2_hf.LAYOUT),
)


def layouts_of(family: type[Backbone]) -> tuple[Layout, ...]:
    """The layouts that weights of `family` are published in."""
    return tuple(layout for layout in LAYOUTS.values() if layout.family is family)
