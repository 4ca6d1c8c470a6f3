"""Batches from a prepared data set, as a pure function of seed and step.

The training order is drawn over row numbers and cut into batches. A process reads only those
places of each batch that its devices hold, and steps are dealt out to workers and threads. So a
batch does not depend on the number of processes, workers and threads, and resuming needs only the
step.

Memory is bounded. At most `READ_AHEAD_BYTES` of batches are read ahead (or two batches, if two are
larger), in this process and in each worker. A training split of up to `IN_MEMORY_BYTES` stays in
memory once it has been read.
"""

import ctypes
import functools
import itertools
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from fmi_jax.cores import available_cores
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset
from fmi_jax.errors import UsageError, UserError
from fmi_jax.types import Batch

READ_AHEAD_BYTES = 2**30
"""Largest size of the pixels in the batches that wait for the training step."""

IN_MEMORY_BYTES = 2**30
"""Largest size of the pixels of a training split whose images are decompressed only once."""

Strata = Sequence[Int[np.ndarray, "n"]]
"""Rows of the training split, by class."""

_PASSES = _STEPS = 2**31  # stands for "endless", because grain's own endless length overflows
_LIBC = ctypes.CDLL(None)
_NAMED = 3  # number of a batch's images that a message names


def train_batches(
    dataset: PreparedDataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    threads: int = 0,
    workers: int = 0,
    places: Int[np.ndarray, "p"] | None = None,
    strata: Strata | None = None,
) -> Generator[Batch, None, None]:
    """Yield training batches from step `start_step` on, without end, or a process's part of them.

    Every pass goes over the whole split in a new order. A batch may span two passes (or more, if
    it is larger than the split): no image is dropped or repeated within a pass.

    Args:
      dataset: data set from `open_dataset`.
      batch_size: images per step, over all processes.
      seed: random seed of the order, 0 to 2**32 - 1.
      start_step: first step, counted from 0.
      threads: reading threads, in this process or in each worker; 0: one per CPU core.
      workers: reading processes beside this one; 0: none. With workers nothing stays in memory.
      places: places in each batch to read, 0 to `batch_size - 1` (`parallel.held_places`); None:
        all.
      strata: sets of rows to draw from equally often, an image anew at each place; None: every
        image comes once in each pass.

    Raises:
      UsageError: `batch_size` is not positive, or `seed` is out of range.
      UserError: (from the iterator) a record is damaged, or a worker was killed; no batch comes
        after that.
    """
    places = _places(batch_size, places)
    count = dataset.info.counts["train"]
    _order(count, seed)  # refuses a wrong seed before the first batch
    _keep_freed_memory()
    split = dataset.split("train")
    image_and_label = split.__getitem__
    if not workers and _num_bytes(dataset.info, len(split)) <= IN_MEMORY_BYTES:
        # Reading is mostly decompression (0.3 ms for 256 x 256 x 3), which the system's file cache
        # does not avoid; from memory an image costs only the copy into the batch.
        image_and_label = functools.cache(image_and_label)

    def read(step: int) -> Batch:
        rows = batch_rows(count, seed, step, batch_size, places, strata)
        return _read(image_and_label, dataset.info, rows)

    batches = grain.MapDataset.range(start_step, _STEPS).map(read)
    reader = batches.to_iter_dataset(_read_options(threads, _num_bytes(dataset.info, len(places))))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        reader = reader.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=functools.partial(_start_worker, os.getpid()),
        )
    return _until_error(
        iter(reader), start_step, lambda step: batch_ids(dataset, seed, step, batch_size, strata)
    )


def eval_batches(
    dataset: PreparedDataset,
    split: str,
    *,
    batch_size: int,
    threads: int = 0,
    places: Int[np.ndarray, "p"] | None = None,
) -> Iterator[Batch]:
    """Yield batches of one pass over a split in row order, or a process's part of them.

    Every image comes exactly once. The last batch is filled up with padding (zeros, maps of
    `IGNORE`, `mask` 0, `index` -1). All processes get the same number of batches, so none waits for
    another.

    Args:
      dataset: data set from `open_dataset`.
      split: name of the split.
      batch_size: images per batch, over all processes.
      threads: reading threads; 0: one per CPU core.
      places: places in each batch to read, 0 to `batch_size - 1` (`parallel.held_places`); None:
        all.

    Raises:
      UsageError: there is no such split, or `batch_size` is not positive.
      UserError: (from the iterator) a record is damaged.
    """
    places = _places(batch_size, places)
    rows = _padded_rows(len(dataset.split(split)), batch_size)
    return batches_of_rows(dataset, split, rows, threads=threads, places=places)


def batches_of_rows(
    dataset: PreparedDataset,
    split: str,
    rows: Int[np.ndarray, "n b"],
    *,
    threads: int = 0,
    places: Int[np.ndarray, "p"] | None = None,
) -> Iterator[Batch]:
    """Yield `n` batches of the given rows of a split, or the given places of each; -1 is padding.

    Raises:
      UsageError: there is no such split.
      UserError: (from the iterator) a record is damaged.
    """
    mine = rows[:, _places(rows.shape[1], places)]
    _keep_freed_memory()
    read = functools.partial(_read, dataset.split(split).__getitem__, dataset.info)
    options = _read_options(threads, _num_bytes(dataset.info, mine.shape[1]))
    return iter(grain.MapDataset.source([*mine]).map(read).to_iter_dataset(options))


def feature_train_batches(
    features: Float[np.ndarray, "n f"],
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    places: Int[np.ndarray, "p"],
    strata: Strata | None = None,
) -> Generator[Batch, None, None]:
    """Same as `train_batches`, with kept features instead of images."""
    for step in itertools.count(start_step):
        rows = batch_rows(len(features), seed, step, batch_size, places, strata)
        yield _feature_batch(features, labels, rows)


def feature_eval_batches(
    features: Float[np.ndarray, "n f"],
    labels: np.ndarray,
    *,
    batch_size: int,
    places: Int[np.ndarray, "p"],
) -> Iterator[Batch]:
    """Same as `eval_batches`, with kept features instead of images."""
    for rows in _padded_rows(len(features), batch_size):
        yield _feature_batch(features, labels, rows[places])


def _padded_rows(count: int, batch_size: int) -> Int[np.ndarray, "n b"]:
    """All rows in order, batch by batch; -1 fills the last one up."""
    return np.r_[np.arange(count), np.full(-count % batch_size, -1)].reshape(-1, batch_size)


def _feature_batch(features: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Batch:
    """Make the batch of these rows; -1 is padding, and takes the features of the last row."""
    return Batch(
        inputs=np.asarray(features[rows], np.float32),
        labels=labels[rows],
        mask=(rows >= 0).astype(np.float32),
        index=rows.astype(np.int32),
    )


def batch_ids(
    dataset: PreparedDataset,
    seed: int,
    step: int,
    batch_size: int,
    strata: Strata | None = None,
) -> list[str]:
    """List the image ids of the whole training batch of `step`, without reading an image."""
    ids, places = dataset.ids("train"), np.arange(batch_size)
    return [ids[i] for i in batch_rows(len(ids), seed, step, batch_size, places, strata)]


def batch_rows(
    count: int,
    seed: int,
    step: int,
    batch_size: int,
    places: Int[np.ndarray, "p"],
    strata: Strata | None = None,
) -> Int[np.ndarray, "p"]:
    """Rows at the given places of the training batch of `step`, for a split of `count` images."""
    positions = (step * batch_size + places).tolist()
    if strata is not None:
        drawn = [np.random.default_rng((seed, position)).random(2) for position in positions]
        among = [(strata[int(a * len(strata))], b) for a, b in drawn]
        return np.array([rows[int(b * len(rows))] for rows, b in among], np.int32)
    return np.array([_row_at(count, seed, position) for position in positions], np.int32)


# To shuffle the rows of a small set, grain draws 2**16 / count numbers for each: 1 ms for 40 rows.
@functools.lru_cache(10_000)
def _row_at(count: int, seed: int, position: int) -> int:
    row: Any = _order(count, seed)[position]
    return row


@functools.lru_cache
def _order(count: int, seed: int) -> grain.MapDataset:
    """Endless row numbers, shuffled anew for every pass."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed {seed}: expected 0 to {2**32 - 1}.")
    return grain.MapDataset.source(range(count)).shuffle(seed=seed).repeat(_PASSES)


def _places(batch_size: int, places: np.ndarray | None) -> np.ndarray:
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: expected 1 or more.")
    return np.arange(batch_size) if places is None else places


def _num_bytes(info: DatasetInfo, count: int) -> int:
    return count * info.size * info.size * (info.channels + (info.label.of_pixels))


def _read(
    image_and_label: Callable[[int], tuple[np.ndarray, np.ndarray]],
    info: DatasetInfo,
    rows: np.ndarray,
) -> Batch:
    """Make the batch of these rows; -1 is padding."""
    images = np.empty((len(rows), info.size, info.size, info.channels), np.uint8)
    shape = info.label.shape(len(info.classes), info.size)
    labels = np.empty((len(rows), *shape), info.label.dtype)
    for i, row in enumerate(rows.tolist()):
        images[i], labels[i] = image_and_label(row) if row >= 0 else (0, info.label.padding)
    return Batch(
        inputs=images,
        labels=labels,
        mask=(rows >= 0).astype(np.float32),
        index=rows.astype(np.int32),
    )


def _read_options(threads: int, batch_bytes: int) -> grain.ReadOptions:
    """Options by which one thread reads a batch and has one batch in work or waiting."""
    threads = threads or len(available_cores())
    ahead = max(2, min(threads, READ_AHEAD_BYTES // batch_bytes))
    return grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)


def _until_error(
    reader: grain.DatasetIterator[Batch], step: int, ids_of: Callable[[int], Sequence[str]]
) -> Generator[Batch, None, None]:
    """Yield the batches of `reader` from `step` on, and none after an error: grain would continue
    with those of the other workers."""
    try:
        for batch in reader:
            yield batch
            step += 1
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        ids = ids_of(step)
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        raise UserError(
            f"a reading process was killed before the batch of step {step + 1} was read"
            f" ({', '.join(ids[:_NAMED])}{more}): {str(error).split('. ')[0]}."
            " Expected it to live: -9 mostly means that memory ran out, -7 that /dev/shm is full"
            " (docker run --shm-size=8g). Start again with fewer data.workers; 0 reads with"
            " threads alone."
        ) from error
    finally:
        reader.close()


def _keep_freed_memory() -> None:
    """Make glibc keep the buffers of one image for the next, instead of giving them back.

    Otherwise each needs new pages from the system: at 1024 pixels half of the reading time.
    """
    if hasattr(_LIBC, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        _LIBC.mallopt(mmap_threshold, 2**25)  # largest value that glibc itself would set
        _LIBC.mallopt(trim_threshold, 2**30)


def _start_worker(parent: int, worker: int, workers: int) -> None:
    """Set a worker up; Linux ends it when the trainer is gone, even if that was killed."""
    _keep_freed_memory()
    pr_set_pdeathsig = 1
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # the trainer ended before the call
        os._exit(1)
