"""Segmentation in a run: it finds lesions that no threshold finds, in memory that does not grow."""

import csv
import functools
import gc
import runpy
import time
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
import short_runs
from flax import nnx
from PIL import Image
from tiny_backbones import ONE_PER_FAMILY, TINY

from fmi_jax import parallel
from fmi_jax.cli import main
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import open_or_draw
from fmi_jax.errors import UserError
from fmi_jax.models.base import Execution
from fmi_jax.models.deit import DeiT
from fmi_jax.protocols.heads.per_patch import PerPatchClassifier
from fmi_jax.run.masks import MaskOptions, clean, run_lengths, write_masks
from fmi_jax.run.predict import predict
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

    def __init__(self, measure, on_host=dict) -> None:
        tiny, self.on_host = TINY[ONE_PER_FAMILY[DeiT]], on_host
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
            lambda model, batch: (model(batch["inputs"] / 100.0 - 1, rngs=None), batch),
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
        found = predict_split(
            self.step,
            self.arrays,
            self.batches(count, others),
            count,
            self.mesh,
            self.on_host,
        )
        self.peak = max(self.peak, arrays_in_use() - others)
        tracemalloc.stop()
        assert all(len(values) == count for values in found.values())
        return self.peak


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    task = Segmentation(CLASSES)
    reduced = Evaluation(task.measure, task.on_host)
    reduced.peak_of(2 * BATCH)  # compiles
    few, many = reduced.peak_of(50), reduced.peak_of(500)
    assert few < many  # at least the counts of each image are kept
    assert many < 1.05 * few
    assert reduced.compiled._cache_size() == 1  # type: ignore[attr-defined]  # one program, so the same scratch memory
    # An evaluation that keeps what the network says of each pixel would be found out.
    kept = Evaluation(lambda outputs, batch: {"logits": outputs})
    kept.peak_of(2 * BATCH)
    assert kept.peak_of(50) > 1.5 * kept.peak_of(2 * BATCH)


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
    best_threshold = runpy.run_path(str(ROOT / "examples" / "segmentation.py"))["best_threshold"]
    assert dice > best_threshold(images, masks) + 0.2
    assert list(result.finding.figures) == ["worst.png", "outlines.png"]

    # The same network finds the same masks in files, at the size of each.
    folder, table = tmp_path / "masks", tmp_path / "masks.csv"
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, images, strict=False):
        Image.fromarray(image).save(file)
    Image.fromarray(images[0].repeat(2, axis=0).repeat(3, axis=1)).save(files[0])
    Image.fromarray(images[1][:, ::-1]).save(tmp_path / "mirrored.png")
    command = f"predict --workdir {tmp_path}/run --masks {folder} --out {table} --flips"
    assert main([*command.split(), str(files[1]), str(tmp_path / "mirrored.png")]) == 0
    one, mirrored = (np.asarray(Image.open(folder / f"{n}.png")) for n in ("1_1", "mirrored_2"))
    assert (one != mirrored[:, ::-1]).mean() < 0.002  # pixels whose classes are as likely
    assert (one != mirrored).mean() > 0.01
    write_masks(tmp_path / "run", files, table, folder, MaskOptions())
    found = [np.asarray(Image.open(folder / f"{i}_{i + 1}.png")) for i in range(3)]
    assert [one.shape for one in found] == [(128, 192), (64, 64), (64, 64)]
    kept, _ = Segmentation(CLASSES).read(tmp_path / "run" / "segmentation.csv")
    assert [(one == 1).sum() for one in found[1:]] == kept["predicted"][1:3, 1].tolist()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [result.dataset["classes"][1]] * 3
    for row, mask in zip(rows, found, strict=True):
        assert (int(row["height"]), int(row["width"])) == mask.shape
        again = np.zeros(mask.size, np.uint8)
        numbers = [int(number) for number in row["runs"].split()]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            again[start - 1 : start - 1 + length] = 1
        np.testing.assert_array_equal(again.reshape(mask.shape[::-1]).T, mask == 1)
    with pytest.raises(UserError, match="--masks FOLDER for one on masks"):
        predict(tmp_path / "run", files)


def test_masks_are_cleaned_as_asked() -> None:
    drawn = """
        11100.....2
        1.100.1...2
        111.......2
        ......2....
    """
    found = np.array(
        [[int(c) if c != "." else 0 for c in line] for line in drawn.split()], np.uint8
    )
    cleaned = functools.partial(clean, label=Label.MAP, num_classes=3)
    both = cleaned(found, options=MaskOptions(largest=True, fill_holes=True))
    assert [(both == c).sum() for c in (1, 2)] == [9, 3]
    assert both[1, 1] == 1
    np.testing.assert_array_equal(cleaned(found, options=MaskOptions()), found)
    ring = np.pad(np.full((1, 1), 2, np.uint8), 1, constant_values=1)
    np.testing.assert_array_equal(cleaned(ring, options=MaskOptions(fill_holes=True)), ring)
    # Where masks overlap, each class is cleaned as if it were alone.
    wide, layers = np.pad(ring, 1, constant_values=1), MaskOptions(fill_holes=True, largest=True)
    wide[0, 0], wide[2, 2] = 3, 2
    found = clean(wide, label=Label.LAYERS, num_classes=2, options=layers)
    assert ((found & 1) > 0).all()
    assert (found & 2).astype(bool).sum() == 1


def test_runs_of_pixels_go_down_the_columns() -> None:
    assert run_lengths(np.zeros((3, 4), bool)) == ""
    assert run_lengths(np.array([[0, 1], [1, 1]], bool)) == "2 3"
