"""Interpolation of tables and grids, exactly as PyTorch does it.

Each kernel is a dense matrix `[new, old]` computed with numpy while tracing, and a resize is
two matrix products. `jax.image.resize` is another function: its cubic kernel is the
antialiased one of a = -0.5, its edges are renormalised where PyTorch repeats the border, and
it takes no sampling step of its own. All coordinates have `align_corners=False`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

Kernel = Callable[..., np.ndarray]
"""One of the cubic kernels below: `(old, new, step=)` to a matrix `[new, old]`."""


def bicubic(old: int, new: int, *, step: float) -> Float64[np.ndarray, "{new} {old}"]:
    """Cubic convolution with a = -0.75 on four taps, the border repeated.

    `F.interpolate(mode="bicubic")` along one axis, without antialiasing.

    Args:
      old: length of the axis.
      new: length after.
      step: distance between two samples, in old samples: `old / new`, or the inverse of the
        `scale_factor` given to PyTorch where that is another number.
    """
    source = (np.arange(new) + 0.5) * step - 0.5
    first = np.floor(source).astype(int) - 1
    taps = first[:, None] + np.arange(4)
    weights = _cubic(source[:, None] - taps, a=-0.75)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix


def linear(old: int, new: int) -> Float64[np.ndarray, "{new} {old}"]:
    """`F.interpolate(mode="linear")`, and "bilinear" along one axis, without antialiasing."""
    source = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    taps = np.floor(source).astype(int)[:, None] + np.arange(2)
    weights = 1 - np.abs(source[:, None] - taps)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix


def nearest(old: int, new: int) -> Float64[np.ndarray, "{new} {old}"]:
    """`F.interpolate(mode="nearest")`: sample i is old sample floor(i * old / new)."""
    # In float32, as PyTorch multiplies: an exact product may fall just short of a whole number.
    source = np.floor(np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new)))
    return np.eye(old)[np.minimum(source.astype(int), old - 1)]


def adaptive(old: int, new: int) -> Float64[np.ndarray, "{new} {old}"]:
    """`F.adaptive_avg_pool1d`: the mean of samples floor(i * old / new) to ceil((i+1) * old / new).

    With `new` above `old` neighbouring means share samples.
    """
    index, taps = np.arange(new)[:, None], np.arange(old)
    inside = (taps >= index * old // new) & (taps < -((index + 1) * -old // new))
    return inside / inside.sum(axis=1, keepdims=True)


def bicubic_antialias(old: int, new: int, *, step: float) -> Float64[np.ndarray, "{new} {old}"]:
    """`F.interpolate(mode="bicubic", antialias=True)` along one axis: cubic with a = -0.5."""
    return _antialias(old, new, step, lambda x: _cubic(x, a=-0.5), support=2.0)


def resize(
    grid: Float[Array, "*b h w d"], rows: np.ndarray, cols: np.ndarray
) -> Float[Array, "*b h2 w2 d"]:
    """Resample a grid by one matrix per axis, `rows [h2, h]` and `cols [w2, w]`, in float32."""
    # A table of positions is small and its error goes into every token: never in TF32 or bf16.
    return jnp.einsum(
        "Hh,Ww,...hwd->...HWd",
        jnp.asarray(rows, jnp.float32),
        jnp.asarray(cols, jnp.float32),
        grid.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def enlarge(
    grid: Float[Array, "b h w d"], height: int, width: int
) -> Float[Array, "b {height} {width} d"]:
    """Repeat samples up to a size that is no smaller, as `F.interpolate(mode="nearest")`."""
    axes = tuple(zip((1, 2), grid.shape[1:3], (height, width), strict=True))
    kernels = [nearest(old, new) for _, old, new in axes]
    repeated = [np.eye(old).repeat(-(-new // old), axis=0)[:new] for _, old, new in axes]
    if not all(map(np.array_equal, kernels, repeated)):
        return resize(grid, *kernels).astype(grid.dtype)
    # Twice the size, and other whole numbers. The gradient is then a sum of neighbours.
    for axis, old, new in axes:
        grid = jnp.repeat(grid, -(-new // old), axis=axis)
        grid = jax.lax.slice_in_dim(grid, 0, new, axis=axis)
    return grid


def resize_positions(
    table: Float[Array, "*one n d"],
    old: tuple[int, int],
    new: tuple[int, int],
    kernel: Kernel,
    *,
    prefix: int = 1,
    offset: float = 0.0,
) -> Float[Array, "*one m d"]:
    """The table for `new` rows and columns of patches, from the one for `old`.

    Args:
      table: positions of the prefix tokens, kept as they are, then of the patches row by row.
      old: rows and columns it was trained on.
      new: grid that is wanted; if it is `old`, the table itself is returned.
      kernel: resampling of each axis.
      prefix: number of prefix tokens.
      offset: patches added to a side of `new` where the distance of two samples is computed.
    """
    if new == old:
        return table
    rows, cols = (kernel(a, b, step=a / (b + offset)) for a, b in zip(old, new, strict=True))
    *one, _, d = table.shape
    patches = resize(table[..., prefix:, :].reshape(*old, d), rows, cols)
    return jnp.concatenate([table[..., :prefix, :], patches.reshape(*one, -1, d)], axis=-2)


def _antialias(
    old: int,
    new: int,
    step: float,
    kernel: Callable[[np.ndarray], np.ndarray],
    support: float,
) -> np.ndarray:
    """`kernel` stretched to the coarser spacing, cut at the border, weights renormalised."""
    stretch = max(step, 1.0)
    center = (np.arange(new)[:, None] + 0.5) * step
    taps = np.arange(old)
    # PyTorch truncates the window's ends towards zero after adding a half.
    first = np.maximum((center - support * stretch + 0.5).astype(int), 0)
    last = np.minimum((center + support * stretch + 0.5).astype(int), old)
    weights = np.where((taps >= first) & (taps < last), kernel((taps - center + 0.5) / stretch), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with parameter `a`, zero beyond distance 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
