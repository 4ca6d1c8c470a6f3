"""Batches of precomputed features, in the order in which images would come."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from fmi_jax.data.loader import batch_rows
from fmi_jax.types import Batch


def train_batches(
    features: Float[np.ndarray, "n f"],
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    places: Int[np.ndarray, "p"],
) -> Iterator[Batch]:
    """Same as `loader.train_batches`, with features instead of images."""
    for step in itertools.count(start_step):
        yield _batch(features, labels, batch_rows(len(features), seed, step, batch_size, places))


def eval_batches(
    features: Float[np.ndarray, "n f"],
    labels: np.ndarray,
    *,
    batch_size: int,
    places: Int[np.ndarray, "p"],
) -> Iterator[Batch]:
    """Same as `loader.eval_batches`, with features instead of images."""
    rows = np.arange(-(-len(features) // batch_size) * batch_size, dtype=np.int32)
    rows[len(features) :] = -1
    for batch in rows.reshape(-1, batch_size):
        yield _batch(features, labels, batch[places])


def _batch(features: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Batch:
    """Make the batch of these rows; -1 is padding, and takes the features of the last row."""
    return Batch(
        inputs=np.asarray(features[rows], np.float32),
        labels=labels[rows],
        mask=(rows >= 0).astype(np.float32),
        index=rows,
    )
