"""Features of whole splits, computed once and kept on disk.

Every image goes through the network once, under the evaluation transform; whatever reads frozen
features (kNN, logistic regression, heads on cached features) reads them from there. A split is
one `.npy` file, float32 `[n, f]`, under a folder named by everything that decides its numbers,
with its checksum beside it. Both files appear only when complete; a killed run resumes at the
first missing split.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fmi_jax import atomic, parallel
from fmi_jax.data import loader
from fmi_jax.data.prepared import PreparedDataset
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.errors import UserError
from fmi_jax.protocols.judging import Network, SplitFeatures
from fmi_jax.training.kernel_errors import kernel_errors
from fmi_jax.training.step import Arrays

FORMAT = 1
"""Format number of the record of kept features; the first records have none and are of format 0."""

_COMPUTED = "0.1.0"
"""Release whose features this one would compute again to the last bit: to be raised only when the
numbers of any network change, for kept features are then computed anew."""


def extract(
    network: Network,
    dataset: PreparedDataset,
    folder: Path,
    *,
    mesh: Mesh,
    splits: Sequence[str] = SPLITS,
    say: Callable[[str], None] = print,
) -> dict[str, SplitFeatures]:
    """Read `Features.pooled` of every image from `folder`, or compute and keep it there.

    Memory is that of two batches, on the host and on the devices; the result maps the files
    read-only. Of several processes on one `folder`, one computes and the
    others wait for it.

    Args:
      network: network whose backbone computes the features.
      dataset: images; each comes once, on any number of devices and processes.
      folder: folder of kept features, for any number of networks and data sets.
      mesh: the devices.
      splits: names of the splits.
      say: takes a line for the user.

    Raises:
      UserError: `folder` cannot be written to, or features are not finite.
    """
    about = describe(network, dataset)
    where = folder / _digest(about)[:16]
    step = _feature_step(network, mesh)
    with _held(where, say):
        return {
            split: _features_of(split, network, dataset, where, about, step, mesh, say)
            for split in splits
        }


def describe(network: Network, dataset: PreparedDataset) -> dict[str, Any]:
    """Describe everything that decides the features of an image, as JSON values."""
    config, identity = network.config, network.identity
    from_run = {name: value for name, value in identity.items() if name in ("run", "head")}
    about = {
        "fmi_jax": _COMPUTED,
        "backbone": network.spec.name,
        "arch": dataclasses.asdict(network.arch),
        "weights_sha256": identity.get("weights"),
        "seed": identity.get("seed"),
        "stem": None if from_run else config.backbone.stem,  # a run has its own
        "dtype": jnp.dtype(network.dtype).name,
        "platform": jax.default_backend(),
        "image_size": config.image_size,
        "center_crop": config.augment.center_crop,
        "mean": network.info.mean,
        "std": network.info.std,
        "manifest_sha256": dataset.info.manifest_sha256,
        # Beside a run's alone: features that earlier versions kept are found under the same keys.
        **from_run,
    }
    return json.loads(json.dumps(about, default=str))


def _features_of(
    split: str,
    network: Network,
    dataset: PreparedDataset,
    where: Path,
    about: Mapping[str, Any],
    step: Callable[[Arrays, Arrays], Arrays],
    mesh: Mesh,
    say: Callable[[str], None],
) -> SplitFeatures:
    ids = dataset.ids(split)
    # The images by name: of one training split there may be several parts (data.fraction).
    path = where / f"{split}-{_digest(ids)[:16]}.npy"
    shape = (len(ids), network.arch.feature_width)
    kept = _read(path, about, shape)
    if not parallel.everywhere(kept is not None):  # all processes compute, or none does
        say(f"features of {len(ids)} {split} images: computing, kept in {path}")
        config = network.config
        batch_size = config.train.evaluation_batch_size
        batches = loader.eval_batches(
            dataset,
            split,
            batch_size=batch_size,
            threads=config.data.threads,
            places=parallel.held_places(mesh, batch_size),
        )
        outputs = (step(network.arrays, parallel.to_devices(mesh, batch)) for batch in batches)
        rows = _in_order(outputs, ids)
        with kernel_errors(config.backbone):
            if parallel.is_main():
                with _writing(where):
                    _write(path, about, shape, rows)
                kept = np.load(path, mmap_mode="r")
            else:  # its disk may be another one
                kept = np.concatenate([*rows])
    assert kept is not None
    return SplitFeatures(features=kept, labels=dataset.labels(split), ids=ids)


def _feature_step(network: Network, mesh: Mesh) -> Callable[[Arrays, Arrays], Arrays]:
    """Make `(arrays, batch) -> {"features", "mask", "index"}`, whole on every process."""
    return network.step(
        mesh,
        lambda module, x: module.backbone.features(x).pooled.astype(jnp.float32),
        lambda found, batch: {"features": found, "mask": batch["mask"], "index": batch["index"]},
    )


def _in_order(outputs: Iterator[Arrays], ids: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the features of each batch, `[b, f]`; together they are those of all rows in order."""
    count = 0
    # Two at a time: the devices compute one batch while the one before it is written.
    for output, _ in itertools.pairwise(itertools.chain(outputs, [None])):
        host: dict[str, Any] = jax.device_get(output)
        real = host["mask"] > 0
        rows, features = host["index"][real], host["features"][real]
        if not np.array_equal(rows, np.arange(count, count + len(rows))):
            raise RuntimeError(f"expected the images from row {count} on, got rows {rows}")
        wrong = ~np.isfinite(features).all(axis=1)
        if wrong.any():
            raise UserError(
                f"the features of image {ids[rows[wrong][0]]!r} are not finite: expected numbers."
                " Check the weights, or compute in float32 (backbone.dtype)."
            )
        count += len(features)
        yield features
    if count != len(ids):
        raise RuntimeError(f"expected {len(ids)} images, got {count}")


def _write(
    path: Path, about: Mapping[str, Any], shape: tuple[int, int], rows: Iterator[np.ndarray]
) -> None:
    """Write the features as they come, and then their record, without which they do not count."""
    with atomic.whole_file(path) as draft, draft.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        for features in rows:
            file.write(features.astype("<f4").tobytes())
    record = {"format": FORMAT, "about": about, "sha256": atomic.sha256(path)}
    atomic.write_json(path.with_suffix(".json"), record)


def _read(path: Path, about: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray | None:
    """Read the features kept at `path`; None where there are none, or not what was written."""
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        held = {"about": about, "sha256": atomic.sha256(path)}
        if record.pop("format", 0) > FORMAT or record != held:
            return None
        kept = np.load(path, mmap_mode="r")
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return kept if kept.shape == shape and kept.dtype == np.float32 else None


@contextlib.contextmanager
def _held(where: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make `where` and keep other runs from computing the same at once."""
    if not parallel.is_main():
        yield
        return
    with _writing(where):
        where.mkdir(parents=True, exist_ok=True)
        lock = (where / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is computing the same features: waiting for {where}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for draft in where.glob(".*.tmp"):  # of a run that was killed
            draft.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _writing(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"features cannot be kept in {where} ({error.strerror}): expected a folder that can"
            " be written to, with room for 4 bytes per feature and image."
        ) from error


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
