"""Stages of hierarchical vision transformers: maps of tokens that grow coarser and wider."""

from collections.abc import Iterable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.mlp import Mlp


class MapMlp(Mlp):
    """An `Mlp` for maps, which it computes as sequences of tokens.

    XLA on a CPU sums the gradients of a map in another order.
    """

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Each token by itself."""
        b, h, w, d = x.shape
        return super().__call__(x.reshape(b, h * w, d)).reshape(b, h, w, d)


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
