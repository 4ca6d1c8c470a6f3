"""The pre-norm transformer block, around any attention, and parts of residual branches: learned
factors and stochastic depth (arXiv 1603.09382)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.shards import own_rows


class LayerScale(nnx.Module):
    """A learned factor `gamma [d]` per channel of a residual branch (arXiv 2103.17239)."""

    def __init__(self, width: int, init: float):
        self.gamma = nnx.Param(jnp.full(width, init, jnp.float32))

    def __call__(self, x: Float[Array, "*rest d"]) -> Float[Array, "*rest d"]:
        """`gamma * x`, in the type of `x`."""
        return x * self.gamma.astype(x.dtype)


class Block(nnx.Module):
    """`x + ls1(attn(norm1(x)))`, then the same with `norm2`, `mlp` and `ls2`.

    The parameters of `attn` and `mlp` are drawn in the order in which a caller makes them.

    Args:
      width: channels of a token.
      attn: attention, called as `attn(norm1(x))`, for sequences as `Attention` is.
      mlp: feed-forward module.
      eps: epsilon of the layer norms.
      layer_scale: initial value of the branch factors; None for a block without them.
      drop_path: stochastic depth rate of both branches.
    """

    def __init__(
        self,
        width: int,
        *,
        attn: nnx.Module,
        mlp: nnx.Module,
        eps: float,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        self.drop_path = drop_path
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = attn
        self.ls1 = identity if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.ls2 = identity if layer_scale is None else LayerScale(width, layer_scale)

    def __call__(
        self,
        x: Float[Array, "b *n d"],
        rngs: nnx.Rngs | None,
        tokens: slice | None = None,
        length: int | None = None,
    ) -> Float[Array, "b *m d"]:
        """The block's output, for a sequence of tokens or for a map of them.

        Args:
          x: input of the block.
          rngs: stream `dropout`, which turns drop-path on.
          tokens: part of a sequence whose output is computed; None: all of the input.
          length: number of tokens, the first of the sequence, that are attended to; those after
            them are padding. None: all.
        """
        where = () if tokens is None else (tokens, length)
        mixed = self.attn(self.norm1(x), *where)
        x = x if tokens is None else x[:, tokens]
        x = x + drop_path(self.ls1(mixed), self.drop_path, rngs)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), self.drop_path, rngs)


def identity(x: Array) -> Array:
    """`x`: stands for a part that a network does without."""
    return x


def drop_path(
    x: Float[Array, "b *rest"], rate: float, rngs: nnx.Rngs | None
) -> Float[Array, "b *rest"]:
    """Zero the residual branch `x` for a random `rate` of the batch; scale up the others.

    Args:
      x: output of the branch, before it is added.
      rate: probability that a sample's branch is dropped, below 1.
      rngs: stream `dropout`; None means evaluation, where `x` is returned as it is.
    """
    if rngs is None or rate == 0:
        return x
    key, rest = rngs.dropout(), (1,) * (x.ndim - 1)
    keep = own_rows(lambda n: jax.random.bernoulli(key, 1 - rate, (n, *rest)), x.shape[0])
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def linear_rates(last: float, depth: int) -> tuple[float, ...]:
    """Rate of each of `depth` blocks, rising linearly from 0 at the first to `last`."""
    return tuple(last * i / max(depth - 1, 1) for i in range(depth))
