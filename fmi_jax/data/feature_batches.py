"""Batches of features that are computed already, in the order in which images would come."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from fmi_jax.data.loader import batch_rows
from fmi_jax.types import Batch


def train_batches(
    features: Float[np.ndarray, "n f"],
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """As `loader.train_batches`, with features where a batch has images."""
    part = batch_size // process_count
    step = start_step
    while True:
        rows = np.array(batch_rows(len(features), seed, step, batch_size), np.int32)
        yield _batch(features, labels, rows[part * process_index :][:part])
        step += 1


def eval_batches(
    features: Float[np.ndarray, "n f"],
    labels: np.ndarray,
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """As `loader.eval_batches`, with features where a batch has images."""
    part = batch_size // process_count
    rows = np.arange(-(-len(features) // batch_size) * batch_size, dtype=np.int32)
    rows[len(features) :] = -1
    for start in range(part * process_index, len(rows), batch_size):
        yield _batch(features, labels, rows[start : start + part])


def _batch(features: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Batch:
    """Those of `rows`; -1 is padding, and reads as any other row."""
    return Batch(
        images=np.asarray(features[rows], np.float32),
        labels=labels[rows],
        mask=(rows >= 0).astype(np.float32),
        index=rows,
    )
