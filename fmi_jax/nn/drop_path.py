"""Stochastic depth (arXiv 1603.09382)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.shards import own_rows


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
