"""Layer normalisation."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32 whatever the type of its input.

    Args:
      width: size of the last axis.
      eps: added to the variance.
    """

    def __init__(self, width: int, *, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """`(x - mean) / sqrt(variance + eps) * scale + bias`, in float32."""
        return _normalise(x, self.scale[...], self.bias[...], self.eps)


@functools.partial(jax.checkpoint, static_argnums=3)
def _normalise(
    x: Float[Array, "*n d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*n d"]:
    """The layer norm.

    The variance is the mean of squared deviations, as in PyTorch: the one-pass form
    `E[x^2] - E[x]^2` loses digits where activations are large against their spread.

    The backward pass computes it again from `x`, so that its gradient is one summand of the
    residual stream. As several, XLA on a CPU fused the sums of all blocks above into each of
    their consumers: a training step of DeiT-B then took half as long again.
    """
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * scale + bias
