"""Self-attention on a map with decomposed relative positions (arXiv 2112.01526, section 4.1).

The score of a query at row `i`, column `j` and a key at row `k`, column `l` gets
`q . rel_pos_h[i - k] + q . rel_pos_w[j - l]`. The first term is one number per query and row of
keys, the second one per query and column, so the bias of all pairs is never a tensor of its own.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn import flash
from fmi_jax.nn.attention import (
    dot_product_attention,
    group_size,
    scores_of,
    softmax_product,
)
from fmi_jax.nn.linear import linear
from fmi_jax.nn.shards import fused_parts, local_share
from fmi_jax.nn.window_attention import join_windows, split_windows

_FOLDED_WIDTH = 128  # of heads: up to it folding pays without flash attention, too


class RelativePositionAttention(nnx.Module):
    """Multi-head self-attention among the tokens of a map, or of each window of it.

    A map that is no multiple of the window is filled up below and on the right with tokens of
    zero. They are attended to, as in the reference, where their keys and values are the bias of
    `qkv`.

    Args:
      width: width of the tokens.
      num_heads: number of heads; divides `width`.
      grid: rows and columns of the map, which the position tables are for, when `window` is None.
      window: side of the square windows, in tokens; None for attention over the whole map.
      kernel: one of `attention.KERNELS`.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        window: int | None,
        kernel: str = "auto",
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.window = window
        self.kernel = kernel
        rows, cols = grid if window is None else (window, window)
        self.qkv = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, dtype=dtype, rngs=rngs)
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * rows - 1, width // num_heads), jnp.float32))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * cols - 1, width // num_heads), jnp.float32))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Tokens mixed over the map or the window they are in."""
        b, h, w, d = x.shape
        rows, cols = h, w
        # Projections are per token: those of the filling need not be computed.
        qkv = self.qkv(x)
        if self.window is not None:
            rows, cols = (-(-side // self.window) * self.window for side in (h, w))
            bias = self.qkv.bias
            assert bias is not None
            filling = jnp.broadcast_to(bias[...].astype(qkv.dtype), (b, rows, cols, 3 * d))
            qkv = filling.at[:, :h, :w].set(qkv)
        parts = fused_parts(qkv, 3)
        if self.window is None:
            q, k, v = (self._split_heads(part) for part in parts)
            y = self._attend(q, k, v)
            y = jnp.moveaxis(y, 1, 2).reshape(b, h, w, d)
        else:
            split = [split_windows(part, self.window, self.num_heads) for part in parts]
            q, k, v = (part.reshape(-1, *part.shape[2:]) for part in split)
            y = self._attend(q, k, v).reshape(split[0].shape)
            y = join_windows(y, rows, cols)[:, :h, :w]
        return self.proj(y)

    def folded(self, x: Float[Array, "b h w d"]) -> tuple[Array, Array]:
        """Queries and keys `[b, heads, h * w, e]` of the whole map, whose products are the scores.

        Without a window alone.
        """
        q, k, _ = (self._split_heads(part) for part in fused_parts(self.qkv(x), 3))
        return _folded(q, k, *_products(q, *self._tables(q.dtype)))

    def _split_heads(self, x: Float[Array, "b h w d"]) -> Float[Array, "b heads n e"]:
        b, h, w, d = x.shape
        return jnp.moveaxis(x.reshape(b, h * w, self.num_heads, d // self.num_heads), 2, 1)

    def _tables(self, dtype: Any) -> Iterator[Array]:
        tables = (table[...].astype(dtype) for table in (self.rel_pos_h, self.rel_pos_w))
        return (by_pair(table) for table in tables)

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        return attention(q, k, v, *self._tables(q.dtype), kernel=self.kernel)


def by_pair(table: Float[Array, "distances d"]) -> Float[Array, "n n d"]:
    """The row of `table [2n - 1, d]` for each position of a query and each of a key."""
    n = (table.shape[0] + 1) // 2
    return table[np.arange(n)[:, None] - np.arange(n) + n - 1]


def attention(
    q: Float[Array, "b heads n d"],
    k: Float[Array, "b heads n d"],
    v: Float[Array, "b heads n d"],
    rel_h: Float[Array, "rows rows d"],
    rel_w: Float[Array, "cols cols d"],
    *,
    kernel: str = "auto",
) -> Float[Array, "b heads n d"]:
    """`softmax(q k^T / sqrt(d) + q . rel_h + q . rel_w) v` for the `n = rows * cols` tokens of a
    map, row by row; softmax in float32.

    Args:
      q, k, v: queries, keys and values.
      rel_h: vector for each row of a query and each row of a key (`by_pair`).
      rel_w: vector for each column of a query and each column of a key.
      kernel: one of `attention.KERNELS`.
    """
    n, d = q.shape[2:]
    by_row, by_col = _products(q, rel_h, rel_w)
    width = d + rel_h.shape[0] + rel_w.shape[0]
    spare = -width % 8  # flash attention takes multiples of eight
    takes = kernel == "auto" and flash.kernel_for(q.dtype, n, n, width + spare)
    if takes or width <= _FOLDED_WIDTH:
        query, key = (
            jnp.pad(x, [(0, 0)] * 3 + [(0, spare)]) for x in _folded(q, k, by_row, by_col)
        )
        return dot_product_attention(query, key, v, scale=1.0, kernel=kernel)
    return _row_by_row(q, k, v, by_row, by_col)


def _products(q: Array, rel_h: Array, rel_w: Array) -> tuple[Array, Array]:
    """Each query with the table of its own row and that of its own column; in float32, as the
    scores are sums of three."""
    b, heads, _, d = q.shape
    grid, f32 = q.reshape(b, heads, rel_h.shape[0], rel_w.shape[0], d), jnp.float32
    by_row = jnp.einsum("bhijd,ikd->bhijk", grid, rel_h, preferred_element_type=f32)
    by_col = jnp.einsum("bhijd,jkd->bhijk", grid, rel_w, preferred_element_type=f32)
    return by_row, by_col


def _folded(q: Array, k: Array, by_row: Array, by_col: Array) -> tuple[Array, Array]:
    """Fold positions into plain attention: a query's products with the tables are further entries
    of it, and a key has a one in those of its own row and column."""
    b, heads, n, d = q.shape
    rows, cols = by_row.shape[-1], by_col.shape[-1]
    parts = [q * d**-0.5, *(p.astype(q.dtype).reshape(b, heads, n, -1) for p in (by_row, by_col))]
    query = jnp.concatenate(parts, axis=-1)
    place = np.concatenate(
        [np.repeat(np.eye(rows), cols, axis=0), np.tile(np.eye(cols), (rows, 1))], axis=1
    )
    place = jnp.broadcast_to(jnp.asarray(place, k.dtype), (b, heads, n, rows + cols))
    return query, jnp.concatenate([k, place], axis=-1)


def _row_by_row(q: Array, k: Array, v: Array, by_row: Array, by_col: Array) -> Array:
    """Attend with one group of rows of queries after another, in both passes: of the scores, a
    number per pair of tokens and head, only those of a group are ever held."""
    b, heads, n, d = q.shape
    rows, cols = by_row.shape[-1], by_col.shape[-1]
    fitting = group_size(math.prod(local_share(b, heads)) * n) // cols
    group = max(size for size in range(1, rows + 1) if rows % size == 0 and size <= max(fitting, 1))

    @jax.checkpoint
    def attend(part: tuple[Array, Array, Array]) -> Array:
        queries, by_row, by_col = part  # [b, heads, group, cols, d or rows or cols]
        flat = queries.reshape(b, heads, group * cols, d) * d**-0.5
        scores = scores_of(flat, k).reshape(b, heads, group, cols, rows, cols)
        scores = scores + by_row[..., :, None] + by_col[..., None, :]
        return softmax_product(scores.reshape(b, heads, group * cols, n), v)

    def groups(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(b, heads, rows // group, group, cols, -1), 2, 0)

    # The products are outside of the loop, and with them the gradients of the tables.
    y = jax.lax.map(attend, (groups(q), groups(by_row), groups(by_col)))
    return jnp.moveaxis(y, 0, 2).reshape(b, heads, n, d)
