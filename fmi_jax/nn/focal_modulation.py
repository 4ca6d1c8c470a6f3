"""Focal modulation (arXiv 2203.11926), which takes the place of attention."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.conv import DepthwiseConv
from fmi_jax.nn.linear import linear
from fmi_jax.nn.mlp import gelu
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.transformer import identity

_WINDOW_GROWTH = 2  # pixels by which the kernel of a level is wider than that of the one before


class FocalModulation(nnx.Module):
    """Each query is multiplied by its context, gathered at growing distances.

    The context of level `l` is that of the level before through a depth-wise convolution of
    side `window + 2 l` and a GELU, and a last one is its mean over the image. Their sum,
    weighted by a gate per pixel and level, is the modulator.

    Args:
      width: width of the tokens.
      levels: number of depth-wise convolutions.
      window: side of the first one, odd.
      normalise: divide the sum by the number of its terms.
      norm_eps: epsilon of a layer norm before the last projection; None: no such norm.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        *,
        levels: int,
        window: int,
        normalise: bool,
        norm_eps: float | None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.levels, self.normalise = levels, normalise
        self.f = linear(width, 2 * width + levels + 1, dtype=dtype, rngs=rngs)
        self.focal_layers = nnx.List(
            DepthwiseConv(
                width, window + _WINDOW_GROWTH * level, use_bias=False, dtype=dtype, rngs=rngs
            )
            for level in range(levels)
        )
        self.h = linear(width, width, dtype=dtype, rngs=rngs)
        self.norm = identity if norm_eps is None else LayerNorm(width, eps=norm_eps)
        self.proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Tokens mixed over `h` and `w`."""
        query, modulator = self.query_and_modulator(x)
        return self.proj(self.norm(query * modulator))

    def query_and_modulator(
        self, x: Float[Array, "b h w d"]
    ) -> tuple[Float[Array, "b h w d"], Float[Array, "b h w d"]]:
        """Compute the queries, and the projected context that each is multiplied by."""
        d = x.shape[-1]
        query, context, gates = jnp.split(self.f(x), (d, 2 * d), axis=-1)
        modulator = jnp.zeros_like(query)
        for level, layer in enumerate(self.focal_layers):
            context = gelu(layer(context))
            modulator += context * gates[..., level : level + 1]
        modulator += gelu(context.mean((1, 2), keepdims=True)) * gates[..., self.levels :]
        if self.normalise:
            modulator /= self.levels + 1
        return query, self.h(modulator)
