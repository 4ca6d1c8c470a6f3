"""Multi-head self-attention."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.linear import linear


class Attention(nnx.Module):
    """Self-attention with one fused projection to queries, keys and values, in that order.

    Softmax is in float32. On a GPU in half precision it runs as cuDNN's flash attention.

    Args:
      width: of the tokens.
      num_heads: must divide `width`.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(self, width: int, num_heads: int, *, dtype: Any, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], tokens: slice = slice(None)
    ) -> Float[Array, "b m d"]:
        """Tokens mixed over `n`; of them only those of `tokens`."""
        b, n, d = x.shape
        heads = (b, n, self.num_heads, d // self.num_heads)
        parts = jnp.split(self.qkv(x), 3, axis=-1)
        q, k, v = (jnp.moveaxis(part.reshape(heads), 2, 1) for part in parts)
        y = dot_product_attention(q[:, :, tokens], k, v)
        return self.proj(jnp.moveaxis(y, 1, 2).reshape(b, -1, d))


def dot_product_attention(
    q: Float[Array, "b heads n d"], k: Float[Array, "b heads m d"], v: Float[Array, "b heads m d"]
) -> Float[Array, "b heads n d"]:
    """`softmax(q k^T / sqrt(d)) v`, softmax in float32.

    On a GPU in half precision it is cuDNN's flash attention, which never holds the `n x m`
    scores. On a CPU it is written out with the heads before the tokens, where the batched
    products read contiguous rows: 2.4 times as fast as `jax.nn.dot_product_attention`, whose
    layout has the heads between. Where there are many scores, one group of queries comes after
    another (`in_groups`).
    """
    if jax.default_backend() == "cpu":

        def attend(q: Array) -> Array:
            scores = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
            return softmax_product(scores, v)

        size = MAX_SCORES // (q.shape[0] * q.shape[1] * k.shape[2])
        return attend(q) if q.shape[2] <= size else in_groups(attend, q, max(size, 1))
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    cudnn = jax.default_backend() == "gpu" and half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    y = jax.nn.dot_product_attention(
        *(jnp.moveaxis(array, 1, 2) for array in (q, k, v)),
        implementation="cudnn" if cudnn else None,
    )
    return jnp.moveaxis(y, 2, 1)


MAX_SCORES = 2**24
"""Scores, a number per pair of tokens and head, that are held at a time on a CPU: 64 MiB."""


def softmax_product(
    scores: Float[Array, "*b n m"], v: Float[Array, "*b m d"]
) -> Float[Array, "*b n d"]:
    """`softmax(scores) v`, softmax in float32, the rest in the type of `v`.

    Divided by the sum after the product: the gradient then takes one pass over the scores, where
    that of `jax.nn.softmax` takes two.
    """
    scores = scores.astype(jnp.float32)
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    y = jnp.matmul(weights.astype(v.dtype), v)
    return (y / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def in_groups(
    attend: Callable[[Array], Array], q: Float[Array, "b heads n d"], size: int
) -> Float[Array, "b heads n d"]:
    """`attend(q)`, for at most `size` queries at a time in both passes.

    The scores of a group are computed again in the backward pass, so that those of all queries
    are never held: at 1024 pixels they are a gigabyte in every block.
    """
    b, heads, n, d = q.shape
    count = -(-n // size)
    size = -(-n // count)
    q = jnp.pad(q, [(0, 0), (0, 0), (0, count * size - n), (0, 0)])
    groups = jnp.moveaxis(q.reshape(b, heads, count, size, d), 2, 0)
    y = jax.lax.map(jax.checkpoint(attend), groups)
    return jnp.moveaxis(y, 0, 2).reshape(b, heads, count * size, -1)[:, :, :n]
