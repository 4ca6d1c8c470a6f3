"""All backbones by name."""

from fmi_jax.models import deit, dinov2
from fmi_jax.models.base import BackboneSpec
from fmi_jax.registry import Registry

BACKBONES: Registry[BackboneSpec] = Registry("backbone", (*deit.SPECS, *dinov2.SPECS))
