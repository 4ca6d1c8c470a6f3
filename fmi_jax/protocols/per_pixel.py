"""The judge of heads that give logits for each pixel, and what these heads have in common."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fmi_jax import augment
from fmi_jax.artifacts.charts import Outlines
from fmi_jax.artifacts.result import Finding
from fmi_jax.data.labels import Label, resized_maps
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.nn import resize
from fmi_jax.protocols.judging import Run
from fmi_jax.protocols.spec import HeadSpec, JudgeSpec, Parts, training_images
from fmi_jax.settings import BaseConfig, section
from fmi_jax.tasks.segmentation import Segmentation


def upsampled(
    grid: Float[Array, "b h w d"], height: int, width: int
) -> Float[Array, "b {height} {width} d"]:
    """Resize a grid bilinearly, in float32."""
    if grid.shape[1:3] == (height, width):
        return grid.astype(jnp.float32)
    rows, columns = resize.linear(grid.shape[1], height), resize.linear(grid.shape[2], width)
    return resize.resize(grid, rows, columns)


SHOWN = 8
"""Test images in each figure of a page."""

LABELS = tuple(label for label in Label if label.of_pixels)
"""Forms of labels that these heads learn."""


def judge(run: Run) -> Finding:
    """Evaluate the trained network, and show test images with their outlines, the worst first."""
    test = run.predict("test")
    finding = run.evaluated(run.predict("val"), test)
    assert isinstance(run.task, Segmentation)
    dice = run.task.image_dice(test)
    count = min(SHOWN, len(dice))
    shown = {
        "worst.png": (
            np.argsort(dice, kind="stable")[:count],
            f"The {count} test images of the lowest Dice, in the mean over the classes that are"
            " true or predicted: outlines of true masks in cyan, of predicted ones in amber",
        ),
        "outlines.png": (np.arange(count), f"The first {count} test images, not selected"),
    }
    charts = {name: _outlines(run, rows, dice) for name, (rows, _) in shown.items()}
    captions = {name: caption for name, (_, caption) in shown.items()}
    return dataclasses.replace(finding, figures=captions, charts=charts)


def _outlines(run: Run, rows: Int[np.ndarray, "n"], dice: Float[np.ndarray, "images"]) -> Outlines:
    """Make the chart of some test images."""
    ids, images, label = run.dataset.ids("test"), run.dataset.split("test"), run.task.label
    true = np.stack([images[row][1] for row in rows])
    predicted = resized_maps(run.measured("test", rows)["predicted_map"], *true.shape[1:])
    foreground = np.arange(label.background, len(run.task.classes))
    return Outlines(
        names=[f"{dice[row]:.2f} {ids[row]}" for row in rows],
        images=np.stack([run.dataset.image("test", row) for row in rows]),
        true=label.pixels_of(true[..., None], foreground),
        predicted=label.pixels_of(predicted[..., None], foreground),
    )


_JUDGE = JudgeSpec(
    name="masks",
    summary="Dice and IoU of the trained network on the test images",
    labels=LABELS,
    judge=judge,
    images=training_images,
)


def head_spec(
    name: str,
    summary: str,
    module: Callable[..., nnx.Module],
    options: type | None = None,
    small: Mapping[str, Any] = MappingProxyType({}),
) -> HeadSpec:
    """Describe a head that gives logits for each pixel.

    Args:
      name, summary: see `HeadSpec`.
      module: makes the head on a backbone from the number of classes and the fields of its
        options.
      options: class of its options, in the section of its name; None: it has none.
      small: fields that make it fit a test, beside that of the augmentation.
    """

    def build(parts: Parts) -> nnx.Module:
        fields = {} if options is None else dataclasses.asdict(section(parts.config, options))
        return module(
            parts.backbone, parts.num_classes, **fields, eval_mode=parts.eval_mode, rngs=parts.rngs
        )

    return HeadSpec(
        name=name,
        summary=summary,
        labels=LABELS,
        build=build,
        judge=_JUDGE,
        check=_check,
        small={"augment.center_crop": 1.0, **small},
        options=options,
        reads=() if options is None else (name,),
    )


def _check(config: BaseConfig, info: DatasetInfo) -> None:
    augment.check_label(config.augment, info.label)
