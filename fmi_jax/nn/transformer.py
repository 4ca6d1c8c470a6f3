"""The pre-norm transformer block of the ViT families."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.attention import Attention
from fmi_jax.nn.drop_path import drop_path
from fmi_jax.nn.norm import LayerNorm


class LayerScale(nnx.Module):
    """A learned factor `gamma [d]` per channel of a residual branch (arXiv 2103.17239)."""

    def __init__(self, width: int, init: float):
        self.gamma = nnx.Param(jnp.full(width, init, jnp.float32))

    def __call__(self, x: Float[Array, "*rest d"]) -> Float[Array, "*rest d"]:
        """`gamma * x`, in the type of `x`."""
        return x * self.gamma.astype(x.dtype)


class Block(nnx.Module):
    """`x + ls1(attn(norm1(x)))`, then the same with `norm2`, `mlp` and `ls2`.

    Args:
      width: of the tokens.
      num_heads: of the attention.
      mlp: the feed-forward module.
      attention: one of `attention.KERNELS`.
      eps: of the layer norms.
      layer_scale: initial value of the branch factors; None for a block without them.
      drop_path: stochastic depth rate of both branches.
      dtype: compute type of matrix products and activations.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp: nnx.Module,
        *,
        attention: str = "auto",
        eps: float,
        layer_scale: float | None,
        drop_path: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.drop_path = drop_path
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads, kernel=attention, dtype=dtype, rngs=rngs)
        self.ls1 = _identity if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.ls2 = _identity if layer_scale is None else LayerScale(width, layer_scale)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        rngs: nnx.Rngs | None,
        tokens: slice = slice(None),
        length: int | None = None,
    ) -> Float[Array, "b m d"]:
        """The block's output; `rngs` (stream `dropout`) turns drop-path on.

        Only that of `tokens`, if it is given: they attend to all tokens of `x`, or to the first
        `length` of them, after which there is padding.
        """
        mixed = self.attn(self.norm1(x), tokens, length)
        x = x[:, tokens] + drop_path(self.ls1(mixed), self.drop_path, rngs)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), self.drop_path, rngs)


def _identity(x: Array) -> Array:
    return x
