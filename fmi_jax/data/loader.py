"""Batches from a prepared data set: a pure function of seed and step, whatever reads them.

The order of training is drawn over row numbers, batches are cut from it, and only then are the
batches dealt out to processes, workers and threads. So a batch does not depend on their numbers,
and resuming needs the step alone.
"""

import ctypes
import functools
import os
import signal
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from fmi_jax.data.prepared import PreparedDataset, PreparedSplit
from fmi_jax.errors import UsageError
from fmi_jax.types import Batch


def train_batches(
    dataset: PreparedDataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    threads: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's part of the training batches from step `start_step` on, without end.

    Every pass goes over the whole split in a new order. A batch may reach over the border of two
    passes (and over several, if it is larger than the split): no image is dropped or repeated
    within a pass. Process `p` of `n` gets the `p`-th of `n` equal, contiguous parts of each batch.

    Args:
      dataset: from `open_dataset`.
      batch_size: images per step, over all processes.
      seed: of the order, 0 to 2**32 - 1.
      start_step: the first step, counted from 0.
      threads: reading threads; 0: one per CPU core.
      workers: reading processes beside this one; 0: none.
      process_index, process_count: this process among those that train together.

    Raises:
      UsageError: `batch_size` cannot be divided among the processes, or `seed` is out of range.
    """
    split = dataset.split("train")
    part = _part(batch_size, process_count)
    order = _order(dataset.info.counts["train"], seed)
    batches = order.map(functools.partial(_sample, split)).batch(part)
    mine = batches[start_step * process_count + process_index :: process_count]
    reader = mine.to_iter_dataset(_read_options(threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        reader = reader.mp_prefetch(
            options, worker_init_fn=functools.partial(_die_with_parent, os.getpid())
        )
    return iter(reader)


def eval_batches(
    dataset: PreparedDataset,
    split: str,
    *,
    batch_size: int,
    threads: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's part of the batches of one pass over a split, in the order of its rows.

    Every image comes exactly once. The last batch is filled up with padding (zeros, `mask` 0,
    `index` -1), and every process gets equally many batches, so that none waits for another.

    Raises:
      UsageError: no such split, or `batch_size` cannot be divided among the processes.
    """
    part = _part(batch_size, process_count)
    count = dataset.info.counts[dataset.split(split).name]
    rows = range(-(-count // batch_size) * batch_size)
    sample = functools.partial(_sample_or_padding, dataset.split(split), count)
    batches = grain.MapDataset.source(rows).map(sample).batch(part)
    return iter(batches[process_index::process_count].to_iter_dataset(_read_options(threads)))


def batch_ids(dataset: PreparedDataset, seed: int, step: int, batch_size: int) -> list[str]:
    """Ids of the images of the whole training batch of `step`, without reading an image."""
    order = _order(dataset.info.counts["train"], seed)
    ids = dataset.ids("train")
    rows = (int(order[step * batch_size + i]) for i in range(batch_size))  # type: ignore[arg-type]
    return [ids[row] for row in rows]


def _order(count: int, seed: int) -> grain.MapDataset:
    """Row numbers, shuffled anew for every pass, without end."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed {seed}: expected 0 to {2**32 - 1}.")
    return grain.MapDataset.source(range(count)).shuffle(seed=seed).repeat()


def _part(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UsageError(
            f"batch size {batch_size}: expected a positive multiple of {process_count},"
            " the number of processes."
        )
    return batch_size // process_count


def _sample(split: PreparedSplit, row: int) -> Batch:
    image, label = split[row]
    return Batch(
        images=image, labels=label, mask=np.ones((), np.float32), index=np.asarray(row, np.int32)
    )


def _sample_or_padding(split: PreparedSplit, count: int, row: int) -> Batch:
    if row < count:
        return _sample(split, row)
    image, label = split[0]
    return Batch(
        images=np.zeros_like(image),
        labels=np.zeros_like(label),
        mask=np.zeros((), np.float32),
        index=np.asarray(-1, np.int32),
    )


def _read_options(threads: int) -> grain.ReadOptions:
    # The unit is a batch. grain's default of 500 would fill the memory.
    threads = threads or os.cpu_count() or 1
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2))


def _die_with_parent(parent: int, worker: int, workers: int) -> None:
    """Have Linux end this worker when the trainer is gone, even if that was killed outright."""
    del worker, workers
    pr_set_pdeathsig = 1
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the call
        os._exit(1)
