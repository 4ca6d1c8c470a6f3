"""Pooling of grids."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The largest of each 3x3 window, every other one, as `F.max_pool2d(x, 3, 2, padding=1)`.

    The gradient goes to the first of equal values in reading order, as in PyTorch: the same, as
    rows of a window are compared before its columns. Written with slices, as XLA on a CPU turns
    the gradient of `reduce_window` into a sort-like scatter of ten times the cost.
    """
    return _pool_axis(_pool_axis(x, 2), 1)


def _pool_axis(x: Array, axis: int) -> Array:
    size = x.shape[axis]
    out = (size + 1) // 2
    width = [(0, 0)] * x.ndim
    width[axis] = (1, 2 * out + 1 - size)  # one more than the last window needs: pairs
    x = jnp.pad(x, width, constant_values=-jnp.inf)
    pairs = x.reshape(*x.shape[:axis], out + 1, 2, *x.shape[axis + 1 :])
    first, second = (jnp.take(pairs, i, axis=axis + 1) for i in (0, 1))

    def cut(a: Array, start: int) -> Array:
        index = [slice(None)] * a.ndim
        index[axis] = slice(start, start + out)
        return a[tuple(index)]

    return functools.reduce(_larger, (cut(first, 0), cut(second, 0), cut(first, 1)))


def _larger(a: Array, b: Array) -> Array:
    """The first of two equal ones; NaN if either is."""
    return jnp.where((b > a) | jnp.isnan(b), b, a)
