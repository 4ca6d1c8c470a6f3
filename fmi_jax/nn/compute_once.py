"""A wall that XLA on a CPU neither fuses nor merges through."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def compute_once(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, trees of arrays, held in memory before anything reads it; to be
    differentiated by hand.

    XLA on a CPU fuses an elementwise computation into each of its readers, which is cheap for
    a sum and ruinous for one of fifty terms that three readers compute anew. Neither
    `jax.lax.optimization_barrier` nor `jax.checkpoint` keeps it from that; a branch does, if the
    compiler does not see that it is always taken.
    """
    always = jax.lax.optimization_barrier(jnp.bool_(True))
    results = jax.eval_shape(function, *args)

    def never(*_: Any) -> Any:
        return jax.tree.map(lambda result: jnp.zeros(result.shape, result.dtype), results)

    return jax.lax.cond(always, function, never, *args)
