"""The feed-forward halves of a transformer block."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn import hardware
from fmi_jax.nn.linear import linear
from fmi_jax.nn.shards import along_model, fused_parts


@jax.checkpoint
def gelu(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Exact GELU (erf, not its tanh approximation).

    The backward pass computes it again from `x`: two arrays less to keep, each four times as
    wide as the tokens and most of what a block keeps, at no time that could be measured. Written
    with erf, as PyTorch has it: with `jax.nn.gelu`'s erfc it takes 1.8 times as long on a CPU.
    """
    wide = _widened(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@jax.checkpoint
def quick_gelu(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """`x * sigmoid(1.702 x)`, which OpenAI trained CLIP with; computed again as `gelu` is."""
    wide = _widened(x)
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


@jax.checkpoint
def silu_gate(gate: Float[Array, "*n d"], value: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """`silu(gate) * value`, computed again in the backward pass as `gelu` is."""
    return (jax.nn.silu(_widened(gate)) * _widened(value)).astype(gate.dtype)


def _widened(x: Array) -> Array:
    """`x` in float32 where a CPU computes in bfloat16: it has products of it and nothing else, and
    with a rounding after every operation GELU took twice as long."""
    return x.astype(jnp.float32) if hardware.bfloat16_products() else x


class Mlp(nnx.Module):
    """Linear, activation, linear.

    Args:
      width: width of the tokens.
      hidden_width: width between the two layers.
      activation: function between the two layers.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        *,
        activation: Callable[[Array], Array] = gelu,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = linear(width, hidden_width, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden_width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Each token by itself."""
        hidden = self.fc1(x)
        return self.fc2(self.activation(along_model(hidden, hidden.ndim - 1)))


class SwiGLU(nnx.Module):
    """`w3(silu(a) * b)` with `a, b` the two halves of `w12(x)` (DINOv2 ViT-g).

    Args:
      width: width of the tokens.
      hidden_width: width of each half.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(self, width: int, hidden_width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.w12 = linear(width, 2 * hidden_width, dtype=dtype, rngs=rngs)
        self.w3 = linear(hidden_width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Each token by itself."""
        return self.w3(silu_gate(*fused_parts(self.w12(x), 2)))
