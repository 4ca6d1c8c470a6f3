"""Watches over a training: features of the backbone that it will hand on, as it learns."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fmi_jax import parallel
from fmi_jax.protocols.judging import Monitor, batches_of
from fmi_jax.run.session import Session
from fmi_jax.training.partition import Partition
from fmi_jax.training.step import Arrays, Placement, Preprocess


def watcher(
    run: Session,
    monitor: Monitor,
    structure: Partition,
    preprocess: Preprocess,
    placement: Placement,
    first: Arrays,
) -> tuple[Mapping[str, float], Callable[[Arrays], dict[str, float]]]:
    """Measure the arrays that a training begins with, and make the measure of later ones.

    Args:
      run: run that trains.
      monitor: images to watch, and measure of their features.
      structure: model that is trained.
      preprocess: function that makes its inputs, as in an evaluation.
      placement: sharding of its arrays.
      first: arrays of the model at step 0.

    Returns:
      What was measured at step 0, and the measure of arrays at another.
    """
    backbone_of = operator.attrgetter(run.assembly.fit.hands_on)
    size = min(run.config.train.evaluation_batch_size, len(monitor.rows))
    rows = [monitor.rows[at : at + size] for at in range(0, len(monitor.rows), size)]

    def of_images(arrays: Arrays, images: jax.Array) -> jax.Array:
        backbone: Any = backbone_of(structure.merge(arrays, placement=placement))
        return backbone.features(preprocess(images)).pooled.astype(jnp.float32)

    step = jax.jit(
        parallel.by_shard(
            run.mesh,
            of_images,
            in_specs=(dict(placement), PartitionSpec("data")),
            out_specs=PartitionSpec("data"),
        ),
        in_shardings=(dict(placement), parallel.batch_sharding(run.mesh)),
        out_shardings=parallel.replicated(run.mesh),
    )

    def features(arrays: Arrays) -> np.ndarray:
        found: list[np.ndarray] = []
        for some, batch in zip(rows, batches_of(run, "train", rows), strict=True):
            images = parallel.to_devices(run.mesh, batch)["inputs"]
            found.append(np.asarray(jax.device_get(step(arrays, images)))[: len(some)])
        return np.concatenate(found)

    before = features(first)
    return monitor.values(before, before), lambda arrays: monitor.values(features(arrays), before)
