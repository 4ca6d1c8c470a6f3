"""Map of focal modulation: how strongly each place is modulated by what is around it."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.saliency.attention import last_block


def modulator(backbone: Backbone, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols"]:
    """Magnitude of the modulator of the last block, over channels (arXiv 2203.11926)."""
    block, x = last_block(backbone, images)
    layer, graphdef_and_state = block.modulation, nnx.split(block)
    entering = []

    def noted(x: Array) -> Array:
        entering.append(x)
        return x

    copy: Any = nnx.merge(*graphdef_and_state)
    copy.modulation = noted  # blocks differ in what comes before it
    copy(x, None)
    _, found = layer.query_and_modulator(entering[0])
    return jnp.linalg.norm(found.astype(jnp.float32), axis=-1)
