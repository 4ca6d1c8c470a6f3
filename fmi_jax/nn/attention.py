"""Multi-head self-attention."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn import flash, hardware
from fmi_jax.nn.linear import linear
from fmi_jax.nn.shards import along_model, fused_parts, local_share

KERNELS = ("auto", "plain")
"""Values of `Execution.attention`: flash attention where the hardware has it, or never."""


class Attention(nnx.Module):
    """Self-attention with one fused projection to queries, keys and values, in that order.

    Args:
      width: width of the tokens.
      num_heads: number of heads; divides `width`.
      kernel: one of `KERNELS`.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self, width: int, num_heads: int, *, kernel: str = "auto", dtype: Any, rngs: nnx.Rngs
    ):
        self.num_heads = num_heads
        self.kernel = kernel
        self.qkv = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], tokens: slice = slice(None), length: int | None = None
    ) -> Float[Array, "b m d"]:
        """Tokens mixed over the first `length` of `n` (None: all); of them only `tokens`."""
        b, _, d = x.shape
        q, k, v = self.heads(x)
        y = dot_product_attention(q[:, :, tokens], k, v, length=length, kernel=self.kernel)
        return self.proj(jnp.moveaxis(y, 1, 2).reshape(b, -1, d))

    def heads(self, x: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values of every head, each `[b, heads, n, d / heads]`."""
        b, n, d = x.shape
        heads = (b, n, self.num_heads, d // self.num_heads)
        parts = fused_parts(self.qkv(x), 3)
        q, k, v = (along_model(jnp.moveaxis(part.reshape(heads), 2, 1), 1) for part in parts)
        return q, k, v


def dot_product_attention(
    q: Float[Array, "b heads n d"],
    k: Float[Array, "b heads m d"],
    v: Float[Array, "b heads m e"],
    *,
    scale: float | None = None,
    length: int | None = None,
    kernel: str = "auto",
) -> Float[Array, "b heads n e"]:
    """`softmax(scale * q k^T) v`, softmax in float32.

    The `n x m` scores are never held where there are many: flash attention computes them tile by
    tile (`flash`), and without it one group of queries comes after another (`in_groups`).

    Written out it has the heads before the tokens, where the batched products read contiguous
    rows: 2.4 times as fast on a CPU as `jax.nn.dot_product_attention`, whose layout has the heads
    between.

    Args:
      q, k, v: queries, keys and values.
      scale: factor of the scores; None: `d ** -0.5`.
      length: number of keys that count; those after them, padding, may hold anything. None: all.
      kernel: one of `KERNELS`.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    length = k.shape[2] if length is None else length
    if kernel == "auto":
        attend = flash.kernel_for(q.dtype, q.shape[2], k.shape[2], q.shape[3])
        if attend is not None:
            return attend(q, k, v, factor, length)
    k, v = k[:, :, :length], v[:, :, :length]

    def plain(q: Array) -> Array:
        return softmax_product(scores_of(q * factor, k), v)

    n, size = q.shape[2], group_size(math.prod(local_share(*q.shape[:2])) * length)
    if hardware.platform() != "cpu":
        return plain(q) if n <= size else in_groups(plain, q, size)
    count = -(-n // MAX_QUERIES)
    if n > size:
        return in_groups(plain, q, min(size, -(-n // count)))
    return jnp.concatenate([plain(part) for part in jnp.array_split(q, count, axis=2)], axis=2)


def group_size(scores: int) -> int:
    """Queries that are computed at a time, given the scores that one of them has on a device."""
    if hardware.platform() == "cpu":
        return max(MAX_SCORES // scores, 1)
    # Whole tiles of the matrix units.
    return max(_MAX_SCORES_ACCELERATOR // scores // 128 * 128, 128)


MAX_SCORES = 2**24
"""Scores, a number per pair of tokens and head, that are held at a time on a CPU: 64 MiB."""

_MAX_SCORES_ACCELERATOR = 2**26

MAX_QUERIES = 240
"""Queries of one product on a CPU. Where there are more than 256, XLA computes it on one core: 257
took three times as long as 240."""


def scores_of(
    q: Float[Array, "b heads n d"], k: Float[Array, "b heads m d"]
) -> Float[Array, "b heads n m"]:
    """Scores in float32 of queries, scaled already, with keys."""
    return jnp.einsum(
        "bhnd,bhmd->bhnm",
        q,
        k,
        precision=_precision(k.dtype),
        preferred_element_type=jnp.float32,
    )


def _precision(dtype: Any) -> jax.lax.Precision | None:
    """Precision of products of operands of `dtype`: None, what the process asks for, where they
    are float32. Asked for more than bfloat16 has, XLA on a TPU fuses less around the product."""
    return None if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


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
    y = jnp.matmul(weights.astype(v.dtype), v, precision=_precision(v.dtype))
    return (y / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def in_groups(
    attend: Callable[[Array], Array], q: Float[Array, "b heads n d"], size: int
) -> Float[Array, "b heads n e"]:
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
