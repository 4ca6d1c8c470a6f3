"""Every map that a network has."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.saliency import attention, gradient
from fmi_jax.saliency.modulation import modulator

HALF = "attention_top_half"
PIXELWISE = "gradient_times_input"
TITLES = {
    "attention": "Attention",
    HALF: "Top half of attention",
    "rollout": "Rollout",
    "received_attention": "Received attention",
    "modulator": "Modulator",
    "grad_cam": "Grad-CAM",
    PIXELWISE: "Gradient x input",
}
"""Titles of the maps, in the order in which they are shown."""


def maps_of(module: Any, images: Float[Array, "b h w c"]) -> dict[str, Array]:
    """Compute every map that a network has, `[b, rows, cols]` without negative values.

    Also "heads", the attention `[b, heads, rows, cols]` of each head.

    Args:
      module: network, with a head or without one.
      images: the network's input.
    """
    found = own_maps(*attention.read_by_head(module, images))
    logits = logits_of(module, images)
    if logits.shape[1]:
        target = logits.argmax(axis=1)
        found["grad_cam"] = gradient.grad_cam(gradient.last_layer(module, target, images))
        found[PIXELWISE] = gradient.gradient_times_input(module, target, images)
    return found


def own_maps(backbone: Backbone, images: Float[Array, "b h w c"]) -> dict[str, Array]:
    """Compute the maps of a backbone that need no classifier (`Backbone.own_maps`).

    Attention that is received is left out where the last block attends within several windows.
    """
    found, has = {}, backbone.own_maps
    if "attention" in has:
        found["heads"] = attention.cls_attention(backbone, images)
        found["attention"] = found["heads"].mean(axis=1)
    if "rollout" in has:
        found["rollout"] = attention.rollout(backbone, images)
    if "received_attention" in has and attention.attends_to_all(backbone, images):
        found["heads"] = attention.received_attention(backbone, images)
        found["received_attention"] = found["heads"].mean(axis=1)
    if "modulator" in has:
        found["modulator"] = modulator(backbone, images)
    return found


def logits_of(module: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
    """Logits of a network that classifies images; of no width where it does not."""
    logits = module(images, rngs=None) if hasattr(module, "head") else jnp.zeros((len(images), 0))
    return logits if logits.ndim == 2 else jnp.zeros((len(images), 0))
