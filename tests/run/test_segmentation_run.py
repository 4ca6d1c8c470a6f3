"""Segmentation in a run: it finds lesions that no threshold finds, in memory that does not grow."""

import gc
import time
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import short_runs
from flax import nnx
from tiny_backbones import ONE_PER_FAMILY, TINY

from fmi_jax import parallel
from fmi_jax.data.prepared import open_or_draw
from fmi_jax.models.base import Execution
from fmi_jax.models.deit import DeiT
from fmi_jax.protocols.heads.per_patch import PerPatchClassifier
from fmi_jax.tasks.segmentation import Segmentation
from fmi_jax.training.evaluation import predict_split
from fmi_jax.training.partition import partition
from fmi_jax.training.step import make_eval_step
from fmi_jax.types import Batch

ROOT = Path(__file__).resolve().parent.parent.parent
CLASSES = ("background", "lesion")
BATCH, SIDE = 10, 105


PATIENCE = 10.0  # seconds


def wait_for_release(arrays: Sequence[weakref.ref[np.ndarray]]) -> None:
    """Wait until none of the arrays is in use.

    Threads of the runtime let go of a batch a moment after its results are ready.
    """
    until = time.monotonic() + PATIENCE
    while any(array() is not None for array in arrays):
        assert time.monotonic() < until, "a batch is kept after it was evaluated"
        time.sleep(0.001)


def arrays_in_use() -> int:
    """Bytes of the arrays of JAX, and of those that NumPy has made since tracing began."""
    of_numpy = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    traces = tracemalloc.take_snapshot().filter_traces([of_numpy]).traces
    on_host = sum(trace.size for trace in traces)
    return on_host + sum(array.nbytes for array in jax.live_arrays())


class Evaluation:
    """A tiny frozen network that evaluates any number of images with masks.

    Attributes:
      peak: most bytes of arrays at a time, on the devices and on the host.
    """

    def __init__(self, measure) -> None:
        tiny = TINY[ONE_PER_FAMILY[DeiT]]
        arch, self.peak = tiny.arch.sized(SIDE, SIDE), 0
        self.mesh = parallel.make_mesh(devices=jax.devices()[:1])

        def create(key: jax.Array) -> nnx.Module:
            rngs = nnx.Rngs(key)
            backbone = tiny.family(arch, Execution(), rngs=rngs)  # type: ignore[call-arg]
            return PerPatchClassifier(backbone, len(CLASSES), eval_mode=True, rngs=rngs)

        key = jax.random.key(0)
        parts = partition(nnx.eval_shape(create, key), lambda name: name.startswith("head."))
        names = tuple(parts.variables)
        placement = parallel.parameter_shardings(self.mesh, parts.shapes(names), "replicated")
        self.arrays = jax.jit(lambda key: parts.read(create(key), names))(key)
        self.compiled = make_eval_step(
            parts,
            lambda images: images / 100.0 - 1,
            measure=measure,
            mesh=self.mesh,
            placement=placement,
        )

    def step(self, *arguments: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Evaluate a batch to its end, so that one is in memory at a time, however busy the CPU."""
        return jax.block_until_ready(self.compiled(*arguments))

    def batches(self, count: int, others: int) -> Iterator[Batch]:
        """Batches of noise; before each, the memory in use is noted."""
        shape = (BATCH, SIDE, SIDE)
        before: list[list[weakref.ref[np.ndarray]]] = []
        for start in range(0, count, BATCH):
            rng = np.random.default_rng(start)
            inputs = rng.integers(0, 255, (*shape, 3), np.uint8)
            labels = rng.integers(0, 2, shape, np.uint8)
            made = inputs.nbytes + labels.nbytes
            if len(before) > 1:  # the last one is the caller's until it has the next
                wait_for_release(before[-2])
            self.peak = max(self.peak, arrays_in_use() - made - others)
            before.append([weakref.ref(inputs), weakref.ref(labels)])
            yield Batch(
                inputs=inputs,
                labels=labels,
                mask=np.ones(BATCH, np.float32),
                index=np.arange(start, start + BATCH, dtype=np.int32),
            )

    def peak_of(self, count: int) -> int:
        """Most bytes in use while that many images are evaluated."""
        gc.collect()
        tracemalloc.start()
        self.peak, others = 0, arrays_in_use()
        found = predict_split(self.step, self.arrays, self.batches(count, others), count, self.mesh)
        self.peak = max(self.peak, arrays_in_use() - others)
        tracemalloc.stop()
        assert all(len(values) == count for values in found.values())
        return self.peak


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    task = Segmentation(CLASSES)
    reduced = Evaluation(task.measure)
    reduced.peak_of(2 * BATCH)  # compiles
    few, many = reduced.peak_of(50), reduced.peak_of(500)
    assert few < many  # at least the counts of each image are kept
    assert many < 1.05 * few
    assert reduced.compiled._cache_size() == 1  # type: ignore[attr-defined]  # one program, so the same scratch memory
    # An evaluation that keeps what the network says of each pixel would be found out.
    kept = Evaluation(lambda outputs, batch: {"logits": outputs})
    kept.peak_of(2 * BATCH)
    assert kept.peak_of(50) > 1.5 * kept.peak_of(2 * BATCH)


def best_threshold(images: np.ndarray, masks: np.ndarray) -> float:
    """Best pooled Dice of one threshold on one colour channel, from either side."""
    found = []
    for channel in np.moveaxis(images, -1, 0):
        for level in range(1, 256):
            for predicted in (channel < level, channel >= level):
                both = (predicted & (masks == 1)).sum()
                found.append(2 * both / (predicted.sum() + (masks == 1).sum()))
    return max(found)


def test_a_frozen_network_under_a_decoder_finds_lesions_that_no_threshold_finds(
    tmp_path: Path,
) -> None:
    config = short_runs.read_config(ROOT / "configs" / "lesions.py")
    config.data.data_dir = str(tmp_path / "data")
    config.train.max_steps, config.train.eval_every_epochs = 75, 15
    config.decoder.width = 48
    config.train.bootstrap_samples = 20
    result = short_runs.run(config, tmp_path / "run")
    dataset = open_or_draw(Path(config.data.data_dir), config.data.name, 64, config.data.split)
    pairs = [dataset.split("test")[row] for row in range(len(dataset.ids("test")))]
    images, masks = (np.stack(each) for each in zip(*pairs, strict=True))
    assert masks.shape[1:] == (config.image_size, config.image_size)  # as the run measures them
    dice = result.test.values["dice"]
    assert dice > 0.6
    assert dice > best_threshold(images, masks) + 0.2
