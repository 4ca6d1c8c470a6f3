"""Self-attention inside the windows of a map, as in Swin (arXiv 2103.14030)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fmi_jax.nn.linear import linear, trunc_normal
from fmi_jax.nn.shards import fused_parts
from fmi_jax.nn.stage import pad_map

_HIDDEN = -100.0  # added to the score of a key that a query must not see; the references' value


class WindowAttention(nnx.Module):
    """Every token attends to those of its own window, with a bias per head and distance.

    With `shift`, the windows lie half their size further down and to the right; those that are
    cut by the border of the map are put together from its opposite sides, and tokens that are
    no neighbours do not see one another there. A map that is no larger than a window has no
    shift. A map that is no multiple of the window is filled up with zero tokens below and on
    the right; they are attended to, as in every reference that takes such maps.

    Args:
      width: width of the tokens.
      num_heads: number of heads; divides `width`.
      window: side of a window, in tokens.
      shift: True to shift the windows.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        window: int,
        shift: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.window = num_heads, window
        self.shift = window // 2 if shift else 0
        self.relative_position_bias_table = nnx.Param(
            trunc_normal(rngs.params(), ((2 * window - 1) ** 2, num_heads))
        )
        self.qkv = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Tokens mixed within windows."""
        h, w = x.shape[1:3]
        shift = self.shift if min(h, w) > self.window else 0
        x = jnp.roll(pad_map(x, self.window), (-shift, -shift), axis=(1, 2))
        q, k, v = self.heads(x)
        bias = self.bias()
        hidden = None
        if shift:
            regions = window_regions(*x.shape[1:3], window=self.window, shift=shift)
            hidden = jnp.asarray(regions)[:, :, None] != jnp.asarray(regions)[:, None]
        y = join_windows(biased_attention(q, k, v, bias, hidden), *x.shape[1:3])
        y = jnp.roll(y, (shift, shift), axis=(1, 2))
        return self.proj(y[:, :h, :w])

    def heads(self, x: Float[Array, "b h w d"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values of a map of whole windows, each as `split_windows` returns."""
        q, k, v = (
            split_windows(part, self.window, self.num_heads) for part in fused_parts(self.qkv(x), 3)
        )
        return q, k, v

    def bias(self) -> Float[Array, "heads n n"]:
        """What is added to the score of each query of a window and each of its keys."""
        index = relative_position_index(self.window, self.window)
        return jnp.moveaxis(self.relative_position_bias_table[...][index], 2, 0)


def split_windows(
    x: Float[Array, "b h w width"], window: int, num_heads: int
) -> Float[Array, "b windows heads n d"]:
    """A map as its windows and heads, both row by row; `h` and `w` are multiples of `window`."""
    b, h, w, width = x.shape
    rows, cols, n, d = h // window, w // window, window**2, width // num_heads
    x = x.reshape(b, rows, window, cols, window, num_heads, d)
    return x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(b, rows * cols, num_heads, n, d)


def join_windows(
    x: Float[Array, "b windows heads n d"], height: int, width: int
) -> Float[Array, "b h w heads*d"]:
    """The inverse of `split_windows`, for a map of that size."""
    b, _, heads, n, d = x.shape
    window = round(n**0.5)
    x = x.reshape(b, height // window, width // window, heads, window, window, d)
    return x.transpose(0, 1, 4, 2, 5, 3, 6).reshape(b, height, width, heads * d)


def biased_attention(
    q: Float[Array, "b windows heads n d"],
    k: Float[Array, "b windows heads m d"],
    v: Float[Array, "b windows heads m d"],
    bias: Float[Array, "heads n m"],
    hidden: Bool[Array, "windows #n m"] | None,
) -> Float[Array, "b windows heads n d"]:
    """`softmax(q k^T / sqrt(d) + bias) v`, softmax in float32.

    `hidden` names the keys that a query does not see; None if it sees all.
    """
    scores = jnp.einsum("bwhnd,bwhmd->bwhnm", q * q.shape[-1] ** -0.5, k)
    scores = scores.astype(jnp.float32) + bias
    if hidden is not None:
        scores += jnp.where(hidden, _HIDDEN, 0.0)[:, None]
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bwhnm,bwhmd->bwhnd", weights, v)


def relative_position_index(query: int, key: int) -> Int[np.ndarray, "n m"]:
    """Row of the bias table for each query of a window and each key of another.

    The table has one row per distance, `(query + key - 1)^2` of them, vertical distance first;
    distances are counted as if both windows had the same top left corner.

    Args:
      query: side of the window of queries, `n = query^2`.
      key: side of the window of keys, `m = key^2`.
    """
    distance = np.arange(query)[:, None] - np.arange(key) + key - 1
    index = distance[:, None, :, None] * (query + key - 1) + distance[None, :, None, :]
    return index.reshape(query**2, key**2)


def window_regions(
    height: int, width: int, *, window: int, shift: int
) -> Int[np.ndarray, "windows n"]:
    """Number the part of the map that each token of each window is of, after a roll by `shift`.

    Tokens of one window that are of different parts were no neighbours before the roll.
    """

    def bands(size: int) -> np.ndarray:
        place = np.arange(size)
        return (place >= size - window).astype(np.int32) + (place >= size - shift)

    regions = 3 * bands(height)[:, None] + bands(width)
    rows, cols = height // window, width // window
    regions = regions.reshape(rows, window, cols, window).transpose(0, 2, 1, 3)
    return regions.reshape(rows * cols, window**2)
