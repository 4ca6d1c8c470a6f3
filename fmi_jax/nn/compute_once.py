"""A wall that XLA on a CPU does not fuse through."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array


def compute_once(function: Callable[..., Array], *args: Array) -> Array:
    """`function(*args)`, held in memory before anything reads it; to be differentiated by hand.

    XLA on a CPU fuses an elementwise computation into each of its readers, which is cheap for
    a sum and ruinous for one of fifty terms that three readers compute anew. Neither
    `jax.lax.optimization_barrier` nor `jax.checkpoint` keeps it from that; a branch does, if the
    compiler does not see that it is always taken.
    """
    always = jax.lax.optimization_barrier(jnp.bool_(True))
    result = jax.eval_shape(function, *args)
    return jax.lax.cond(always, function, lambda *_: jnp.zeros(result.shape, result.dtype), *args)
