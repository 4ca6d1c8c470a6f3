"""The judge of heads that give logits for each pixel, and what these heads have in common."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fmi_jax import augment, parallel
from fmi_jax.artifacts.charts import Outlines
from fmi_jax.artifacts.result import Finding
from fmi_jax.data.labels import Label, resized_maps
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.nn import resize
from fmi_jax.protocols.judging import Run, batches_of
from fmi_jax.protocols.spec import JudgeSpec, tested, training_images
from fmi_jax.settings import BaseConfig


def upsampled(
    grid: Float[Array, "b h w d"], height: int, width: int
) -> Float[Array, "b {height} {width} d"]:
    """Resize a grid bilinearly, in float32."""
    if grid.shape[1:3] == (height, width):
        return grid.astype(jnp.float32)
    rows, columns = resize.linear(grid.shape[1], height), resize.linear(grid.shape[2], width)
    return resize.resize(grid, rows, columns)


SHOWN = 8
"""Test images on the page of a run."""

FIGURE = "outlines.png"


def judge(run: Run) -> Finding:
    """Evaluate the trained network, and show the first test images with their outlines."""
    finding = tested(run)
    count = min(SHOWN, len(run.dataset.ids("test")))
    true = np.stack([run.dataset.split("test")[row][1] for row in range(count)])
    chart = Outlines(
        names=run.dataset.ids("test")[:count],
        images=np.stack([run.dataset.image("test", row) for row in range(count)]),
        true=true,
        predicted=resized_maps(_predicted(run, count), *true.shape[1:]),
    )
    caption = (
        f"The first {count} test images, not selected: outlines of the true masks in cyan, of the"
        " predicted ones in amber"
    )
    return dataclasses.replace(finding, figures={FIGURE: caption}, charts={FIGURE: chart})


def _predicted(run: Run, count: int) -> UInt8[np.ndarray, "n h w"]:
    """Predict the class of each pixel of the first `count` test images."""
    network, mesh = run.network(), run.mesh
    (batch,) = batches_of(run, "test", [np.arange(count)])

    step = network.step(
        mesh,
        lambda module, x: module(x, rngs=None).argmax(axis=-1).astype(jnp.uint8),
        lambda classes, batch: classes,
    )
    return jax.device_get(step(network.arrays, parallel.to_devices(mesh, batch)))[:count]


JUDGE = JudgeSpec(
    name="masks",
    summary="Dice and IoU of the trained network on the test images",
    labels=(Label.MAP,),
    judge=judge,
    images=training_images,
)


def check(config: BaseConfig, info: DatasetInfo) -> None:
    """Raise `UsageError` where the augmentation does not fit masks."""
    augment.check_label(config.augment, info.label)
