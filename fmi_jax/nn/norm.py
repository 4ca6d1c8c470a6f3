"""Layer normalisation."""

import jax.numpy as jnp
from flax import nnx


def layer_norm(width: int, *, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm over the last axis, in float32 whatever the type of its input.

    The variance is the mean of squared deviations, as in PyTorch: the one-pass form
    `E[x^2] - E[x]^2` loses digits where activations are large against their spread.
    """
    return nnx.LayerNorm(width, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)
