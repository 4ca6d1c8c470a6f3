"""Stages of hierarchical vision transformers: maps of tokens that grow coarser and wider."""

from collections.abc import Iterable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.drop_path import drop_path
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.transformer import LayerScale


class MapBlock(nnx.Module):
    """The pre-norm transformer block on a map of tokens: `x + ls1(attn(norm1(x)))`, then the
    same with `norm2`, `mlp` and `ls2`.

    Args:
      width: of the tokens.
      attn: maps `[b, h, w, d]` to the same shape.
      mlp: the feed-forward module.
      eps: of the layer norms.
      layer_scale: initial value of the branch factors; None for a block without them.
      drop_path: stochastic depth rate of both branches.
    """

    def __init__(
        self,
        width: int,
        attn: nnx.Module,
        mlp: Mlp,
        *,
        eps: float,
        layer_scale: float | None,
        drop_path: float,
    ):
        self.drop_path = drop_path
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = attn
        self.ls1 = _identity if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.ls2 = _identity if layer_scale is None else LayerScale(width, layer_scale)

    def __call__(
        self, x: Float[Array, "b h w d"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b h w d"]:
        """The block's output; `rngs` (stream `dropout`) turns drop-path on."""
        b, h, w, d = x.shape
        x = x + drop_path(self.ls1(self.attn(self.norm1(x))), self.drop_path, rngs)
        y = self.mlp(self.norm2(x).reshape(b, h * w, d)).reshape(b, h, w, d)
        return x + drop_path(self.ls2(y), self.drop_path, rngs)


class Stage(nnx.Module):
    """Blocks of one width, behind the layer that leads to them from the stage before.

    Args:
      downsample: makes the map coarser and wider; None in the first stage.
      blocks: called as `block(x, rngs)`.
    """

    def __init__(self, downsample: nnx.Module | None, blocks: Iterable[nnx.Module]):
        self.downsample = downsample
        self.blocks = nnx.List(blocks)

    def __call__(
        self, x: Float[Array, "b h w d"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b rows cols width"]:
        """The stage's output, before the layer that leads to the next stage."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x, rngs)
        return x


def pad_map(x: Float[Array, "b h w d"], multiple: int) -> Float[Array, "b rows cols d"]:
    """`x` with zero tokens added below and on the right, to multiples of `multiple`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)))


def _identity(x: Array) -> Array:
    return x
