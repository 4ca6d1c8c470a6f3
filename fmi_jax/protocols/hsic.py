"""Centred kernel alignment (CKA): how alike the features of two networks on the same images are.

Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) with the unbiased estimator of HSIC (Song et
al. 2012, "Feature selection via dependence maximization"): the diagonal of each kernel matrix is
left out. That makes the value of a batch as good as its size allows, without the bias that grows
with the width of the features. 1: the same up to a rotation, a shift and a factor; about 0:
unrelated (single values may fall below 0).

A whole split is measured from batches, in three ways:

* `summed`: HSIC is averaged over batches and divided once (Nguyen et al. 2021, arXiv 2010.15327).
* `averaged`: the CKA of each batch is averaged, as the study's authors do.
  A mean of ratios is not the ratio of means: it is biased for small batches.
* `exact`: all pairs of images at once, from features that are all kept.

Kernel matrices may come from a device in float32; everything after them is float64.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MIN_IMAGES = 4
"""Of a batch: the unbiased estimator divides by n - 3."""


def even_batches(count: int, batch_size: int, seed: int) -> list[Int[np.ndarray, " b"]]:
    """Cut `count` rows into batches of at most `batch_size`, whose sizes differ by 1 at most.

    The order is drawn from `seed`: the rows of a data set often stand class by class, and a
    batch of one class says nothing of the differences between classes.
    """
    order = np.random.default_rng(seed).permutation(count)
    return np.array_split(order, -(-count // batch_size))


def gram(features: Float[Array, "b *rest"], mask: Float[Array, " b"]) -> Float[Array, "b b"]:
    """The linear kernel matrix of a batch, in float32, for use inside a jitted step.

    The mean of the batch is taken off first, which CKA does not see, and which keeps digits that
    a common offset would cost. Rows and columns of padding (`mask` 0) are 0.
    """
    x = features.reshape(features.shape[0], -1).astype(jnp.float32)
    x = (x - mask @ x / mask.sum()) * mask[:, None]
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def hsic(grams: Float[np.ndarray, "l n n"]) -> Float[np.ndarray, "l l"]:
    """Unbiased HSIC of every pair of kernel matrices of the same `n` images, in float64."""
    n = grams.shape[1]
    if n < MIN_IMAGES:
        raise ValueError(f"{n} images: the unbiased HSIC needs {MIN_IMAGES}")
    k = np.array(grams, np.float64)
    diagonal = np.arange(n)
    k[:, diagonal, diagonal] = 0
    means = k.sum(axis=2) / (n - 2)
    means -= means.sum(axis=1, keepdims=True) / (2 * (n - 1))
    k -= means[:, :, None] + means[:, None, :]
    k[:, diagonal, diagonal] = 0
    k = k.reshape(len(k), -1)
    return k @ k.T / (n * (n - 3))


def alignment(hsic: Float[np.ndarray, "l l"]) -> Float[np.ndarray, "l l"]:
    """CKA from HSIC; NaN for features that are the same for every image."""
    scale = np.sqrt(np.maximum(hsic.diagonal(), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.outer(scale, scale) > 0, hsic / np.outer(scale, scale), np.nan)


def summed(batches: Iterable[Float[np.ndarray, "l n n"]]) -> Float[np.ndarray, "l l"]:
    """CKA of every pair of layers over all batches; each counts by its number of images.

    Args:
      batches: kernel matrices of every layer, batch by batch; one batch is held at a time.
    """
    return alignment(sum((k.shape[1] * hsic(k) for k in batches), start=np.zeros(())))


def averaged(batches: Iterable[Float[np.ndarray, "l n n"]]) -> Float[np.ndarray, "l l"]:
    """The mean over batches of their CKA; arguments as of `summed`."""
    each = [alignment(hsic(k)) for k in batches]
    return sum(each, start=np.zeros(())) / len(each)


def exact(features: Sequence[Float[np.ndarray, "n f"]]) -> Float[np.ndarray, "l l"]:
    """CKA of every pair of layers from all pairs of the `n` images, in float64.

    The same as `alignment(hsic(...))` of the kernel matrices of all images. With centred
    features x, y the sums of HSIC over pairs of images come down to the cross-covariance,
    |sum_i x_i y_i'|^2, and the squared lengths |x_i|^2: no matrix of n x n is made where the
    features are narrower than that.
    """
    n = len(features[0])
    if n < MIN_IMAGES:
        raise ValueError(f"{n} images: the unbiased HSIC needs {MIN_IMAGES}")
    products = np.empty((len(features), len(features)))
    squares = np.empty((len(features), n))
    for i, first in enumerate(features):
        x = _centred(first)
        squares[i] = np.square(x).sum(axis=1)
        for j in range(i, len(features)):
            products[i, j] = products[j, i] = _product(x, _centred(features[j]))
    lengths, crossed = squares.sum(axis=1), squares @ squares.T
    total = products - crossed - 2 * crossed / (n - 2)
    total += np.outer(lengths, lengths) / ((n - 1) * (n - 2))
    return alignment(total / (n * (n - 3)))


def _centred(features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
    x = features.astype(np.float64)
    return x - x.mean(axis=0)


def _product(x: Float[np.ndarray, "n f"], y: Float[np.ndarray, "n g"]) -> float:
    """The squared norm of `x' y`, by whichever of two ways is shorter."""
    (n, f), g = x.shape, y.shape[1]
    if f * g <= n * (f + g):
        return float(np.square(x.T @ y).sum())
    return float(((x @ x.T) * (y @ y.T)).sum())
