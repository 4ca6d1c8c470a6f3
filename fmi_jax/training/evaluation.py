"""Evaluation over a split: every image exactly once, on any number of devices and processes."""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fmi_jax import parallel
from fmi_jax.training.step import Arrays
from fmi_jax.types import Batch

STEPS_AHEAD = 2
"""Steps handed to the devices before earlier ones are done: enough to keep the devices busy. More
would only hold batches in their memory (201 MB each for 64 images of 1024 x 1024)."""


def predict_split(
    eval_step: Callable[[Arrays, Arrays], Arrays],
    arrays: Arrays,
    batches: Iterable[Batch],
    num_images: int,
    mesh: Mesh,
    on_host: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = dict,
) -> dict[str, np.ndarray]:
    """Measure every image of a split: arrays by name, in row order.

    Args:
      eval_step: step made by `make_eval_step`.
      arrays: all arrays of the model by name.
      batches: this process's part of the split's batches, padded and masked.
      num_images: size of the split.
      mesh: device mesh.
      on_host: function that reduces what was measured of the images of a batch, on the host.

    Raises:
      RuntimeError: an image is missing or came twice. This is a fault of the loader, never of the
        user.
    """
    ahead: collections.deque[Arrays] = collections.deque()
    parts: list[Mapping[str, np.ndarray]] = []

    def finish() -> None:
        found: dict[str, Any] = jax.device_get(ahead.popleft())
        real = found.pop("mask") > 0
        parts.append(
            {
                "index": found.pop("index")[real],
                **on_host({name: values[real] for name, values in found.items()}),
            }
        )

    for batch in batches:
        ahead.append(eval_step(arrays, parallel.to_devices(mesh, batch)))
        if len(ahead) > STEPS_AHEAD:
            finish()
    while ahead:
        finish()
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = joined.pop("index")
    if not np.array_equal(np.sort(rows), np.arange(num_images)):
        raise RuntimeError(
            f"evaluation saw {len(rows)} images ({len(np.unique(rows))} different),"
            f" expected each of {num_images} once"
        )
    order = np.argsort(rows)
    return {name: values[order] for name, values in joined.items()}
