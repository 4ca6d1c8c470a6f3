"""Focal self-attention (arXiv 2107.00641): near tokens one by one, far ones as pooled windows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fmi_jax.nn.linear import linear, trunc_normal
from fmi_jax.nn.shards import fused_parts
from fmi_jax.nn.stage import pad_map
from fmi_jax.nn.window_attention import (
    biased_attention,
    join_windows,
    relative_position_index,
    split_windows,
    window_regions,
)

_ABSENT = -1e9  # bias of a key that is not there: its weight is exactly 0


class FocalAttention(nnx.Module):
    """Every token attends to its window, to the tokens around it, and to pooled ones around that.

    Level 0 is the window and `expand` tokens on every side of it, where the map goes on at its
    opposite side. Level `k + 1` is the map with each window pooled to `2^k x 2^k` tokens; of
    those, the ones of the window and `region // 2` on every side of them, none beyond the
    border. A map that is no multiple of the window is filled up with zero tokens below and on
    the right, and they are attended to.

    A map no larger than a window has nothing around it: no `expand` there, and no shift.

    Args:
      width: width of the tokens.
      num_heads: number of heads; divides `width`.
      window: side of a window, in tokens.
      expand: tokens around a window that are attended to one by one.
      levels: number of levels of attention, level 0 counted.
      region: side of the pooled surroundings of level 1, odd.
      shift: True to shift the windows by half their size, as in Swin.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        window: int,
        expand: int,
        levels: int,
        region: int,
        shift: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.window, self.expand = num_heads, window, expand
        self.reach = region // 2
        self.shift = window // 2 if shift else 0
        self.dtype = dtype

        def table(*shape: int) -> nnx.Param:
            return nnx.Param(trunc_normal(rngs.params(), shape))

        self.relative_position_bias_table = table((2 * window - 1) ** 2, num_heads)
        if expand:
            ring = len(_ring(window, expand))
            self.relative_position_bias_table_to_neighbors = table(1, num_heads, window**2, ring)
        self.relative_position_bias_table_to_windows = nnx.List(
            table(num_heads, (window + self._side(k) - 1) ** 2) for k in range(levels - 1)
        )
        self.pool_layers = nnx.List(
            # A weighted sum over the tokens, at first their mean.
            nnx.Linear(
                (window // 2**k) ** 2,
                1,
                dtype=dtype,
                param_dtype=jnp.float32,
                kernel_init=jax.nn.initializers.constant(1 / (window // 2**k) ** 2),
                rngs=rngs,
            )
            for k in range(levels - 1)
        )
        self.qkv = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Tokens mixed near and far."""
        h, w = x.shape[1:3]
        expand, shift = (self.expand, self.shift) if min(h, w) > self.window else (0, 0)
        x = jnp.roll(pad_map(x.astype(self.dtype), self.window), (-shift, -shift), axis=(1, 2))
        rows, cols = x.shape[1] // self.window, x.shape[2] // self.window
        q, *kv = fused_parts(self.qkv(x), 3)
        kv = jnp.concatenate(kv, axis=-1)
        keys = [neighbourhoods(kv, self.window, expand, wrap=True)]
        biases = [self._near_bias(expand)]
        hidden = [_hidden_near(rows, cols, self.window, expand, shift)]
        for k, table in enumerate(self.relative_position_bias_table_to_windows):
            pooled = jnp.concatenate(fused_parts(self.qkv(self._pool(x, k)), 3)[1:], axis=-1)
            keys.append(neighbourhoods(pooled, 2**k, self.reach, wrap=False))
            biases.append(table[...][:, relative_position_index(self.window, self._side(k))])
            outside = _outside(rows, cols, 2**k, self.reach)[:, None]
            hidden.append(np.broadcast_to(outside, (*hidden[0].shape[:2], outside.shape[-1])))
        k, v = jnp.split(jnp.concatenate(keys, axis=2), 2, axis=-1)
        y = biased_attention(
            split_windows(q, self.window, self.num_heads),
            self._split_heads(k),
            self._split_heads(v),
            jnp.concatenate(biases, axis=-1),
            jnp.asarray(np.concatenate(hidden, axis=-1)),
        )
        y = jnp.roll(join_windows(y, *x.shape[1:3]), (shift, shift), axis=(1, 2))
        return self.proj(y[:, :h, :w])

    def _side(self, k: int) -> int:
        """Side of what level `k + 1` sees, in pooled tokens."""
        return 2**k + 2 * self.reach

    def _split_heads(self, x: Float[Array, "b w m d"]) -> Float[Array, "b w heads m d2"]:
        return x.reshape(*x.shape[:3], self.num_heads, -1).transpose(0, 1, 3, 2, 4)

    def _pool(self, x: Float[Array, "b h w d"], k: int) -> Float[Array, "b rows cols d"]:
        """`2^k x 2^k` weighted sums for each window.

        Windows that cannot be cut so are made smaller: what is left over is taken from the
        borders of the whole map, not of each window (as in the reference).
        """
        side = self.window // 2**k
        counts = [size // self.window * 2**k for size in x.shape[1:3]]
        starts = [
            (size - count * side) // 2 for size, count in zip(x.shape[1:3], counts, strict=True)
        ]
        ends = [start + count * side for start, count in zip(starts, counts, strict=True)]
        x = x[:, starts[0] : ends[0], starts[1] : ends[1]]
        x = x.reshape(x.shape[0], counts[0], side, counts[1], side, -1)
        layer = self.pool_layers[k]
        weights = layer.kernel[...].reshape(side, side).astype(self.dtype)
        pooled = jnp.einsum("brpcqd,pq->brcd", x, weights)
        return pooled if layer.bias is None else pooled + layer.bias[...].astype(self.dtype)

    def _near_bias(self, expand: int) -> Float[Array, "heads n m"]:
        """The bias of level 0, for the window and what is around it row by row.

        The reference gathers the surroundings as four shifted copies of the window. Where two
        of those overlap, a token is twice a key, each time with a bias of its own; here it is
        one key, with the logarithm of the sum of the exponentials of both, which is the same.
        """
        index = relative_position_index(self.window, self.window)
        own = jnp.moveaxis(self.relative_position_bias_table[...][index], 2, 0)
        if not expand:
            return own
        ring = self.relative_position_bias_table_to_neighbors[...][0]
        absent = jnp.full((*own.shape[:2], 1), _ABSENT)
        columns = jnp.concatenate([own, ring, absent], axis=-1)
        first, second = _near_columns(self.window, expand)
        return jnp.logaddexp(columns[..., first], columns[..., second])


def neighbourhoods(
    x: Float[Array, "b h w d"], window: int, reach: int, *, wrap: bool
) -> Float[Array, "b windows m d"]:
    """Each window of a map with `reach` tokens on every side, `m = (window + 2 reach)^2`.

    Windows and their tokens are row by row. Beyond its border the map goes on at its opposite
    side with `wrap`, and is 0 without.
    """
    around = math.ceil(reach / window)  # windows on each side
    edge = around * window
    x = jnp.pad(
        x, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="wrap" if wrap else "constant"
    )

    def along(x: Array, axis: int) -> Array:
        """`[..., size, ...]` at `axis` to `[..., windows, window + 2 reach, ...]`."""
        x = x.reshape(*x.shape[:axis], -1, window, *x.shape[axis + 1 :])
        count = x.shape[axis] - 2 * around
        parts = [jax.lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(2 * around + 1)]
        x = jnp.concatenate(parts, axis=axis + 1)
        return jax.lax.slice_in_dim(x, edge - reach, edge + window + reach, axis=axis + 1)

    x = along(along(x, 1), 3)
    b, rows, side, cols, _, d = x.shape
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * cols, side * side, d)


def copies_of_window(window: int, expand: int) -> Int[np.ndarray, " m"]:
    """Find the places of the tokens of four moved copies of a window; -1 for those inside it.

    The copies are moved by `expand` down right, down left, up right and up left. Places are
    counted row by row in the square of the window and `expand` tokens on every side. The
    reference's bias table has a column for each token that is outside, in this order.
    """
    places = []
    for down, right in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        row, col = np.indices((window, window)).reshape(2, -1)
        row, col = row + down * expand, col + right * expand
        inside = (row >= 0) & (row < window) & (col >= 0) & (col < window)
        place = (row + expand) * (window + 2 * expand) + col + expand
        places.append(np.where(inside, -1, place))
    return np.concatenate(places)


def _ring(window: int, expand: int) -> Int[np.ndarray, " m"]:
    """Find the columns of the reference's bias table in that square."""
    places = copies_of_window(window, expand)
    return places[places >= 0]


def _own(window: int, expand: int) -> Int[np.ndarray, " n"]:
    """Find the tokens of the window itself in that square."""
    row, col = np.indices((window, window)).reshape(2, -1) + expand
    return row * (window + 2 * expand) + col


def _near_columns(window: int, expand: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the columns in (window, neighbours, absent) of each place of that square: two of them,
    as up to two copies meet there."""
    ring = _ring(window, expand)
    absent = window**2 + len(ring)
    first, second = np.full((2, (window + 2 * expand) ** 2), absent)
    first[_own(window, expand)] = np.arange(window**2)
    for column, place in enumerate(ring, start=window**2):
        column_of = first if first[place] == absent else second
        column_of[place] = column
    return first, second


def _hidden_near(
    rows: int, cols: int, window: int, expand: int, shift: int
) -> Bool[np.ndarray, "windows #n m"]:
    """Find keys of level 0 that a query does not see: after a shift, other parts of its window."""
    side = window + 2 * expand
    if not shift:
        return np.zeros((rows * cols, 1, side**2), bool)
    regions = window_regions(rows * window, cols * window, window=window, shift=shift)
    hidden = np.zeros((rows * cols, window**2, side**2), bool)
    hidden[..., _own(window, expand)] = regions[:, :, None] != regions[:, None]
    return hidden


def _outside(rows: int, cols: int, window: int, reach: int) -> Bool[np.ndarray, "windows m"]:
    """Test which tokens of `neighbourhoods` lie beyond the border of the map."""

    def beyond(count: int) -> np.ndarray:
        place = window * np.arange(count)[:, None] + np.arange(-reach, window + reach)
        return (place < 0) | (place >= count * window)

    outside = beyond(rows)[:, None, :, None] | beyond(cols)[None, :, None, :]
    return outside.reshape(rows * cols, -1)
