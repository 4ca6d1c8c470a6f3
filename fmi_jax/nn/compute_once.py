"""A wall that XLA on a CPU does not fuse through."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array


def compute_once(function: Callable[..., Array], *args: Array) -> Array:
    """`function(*args)`, held in memory before anything reads it; to be differentiated by hand.

    XLA on a CPU fuses an elementwise computation into each of its readers, which is cheap for
    a sum and ruinous for one of fifty terms that three readers compute anew. Neither
    `jax.lax.optimization_barrier` nor `jax.checkpoint` keeps it from that; a loop does, if the
    compiler does not see that it runs only once.
    """
    once = jax.lax.optimization_barrier(jnp.int32(1))
    result = jax.eval_shape(function, *args)

    def body(state: tuple[Array, ...]) -> tuple[Array, ...]:
        turn, _, *inputs = state
        return turn + 1, function(*inputs), *inputs

    start = (jnp.int32(0), jnp.zeros(result.shape, result.dtype), *args)
    return jax.lax.while_loop(lambda state: state[0] < once, body, start)[1]
