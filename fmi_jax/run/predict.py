"""Class probabilities for new images from a finished run."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fmi_jax import parallel
from fmi_jax.artifacts.result import Result
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.data.preparing.images import load_image
from fmi_jax.errors import UsageError, UserError
from fmi_jax.paths import check_file
from fmi_jax.run.assembly import BARE, evaluation_step
from fmi_jax.run.network import read_trained
from fmi_jax.tasks.logits import Classification
from fmi_jax.tasks.predictions import Predictions
from fmi_jax.tasks.registry import task_of
from fmi_jax.training.evaluation import predict_split
from fmi_jax.types import Batch, Rows


def predict(workdir: Path, images: Sequence[Path], batch_size: int = 32) -> Predictions:
    """Classify image files with the best checkpoint of the run in `workdir`.

    The files go through the same decoding, resizing and normalisation as the prepared data. Classes
    are decided on at the thresholds that the run chose on its validation images.

    Args:
      workdir: folder of a finished run.
      images: image files; their ids are the paths as given.
      batch_size: images per step.

    Raises:
      UsageError: no images were named.
      UserError: the run is not finished or damaged, or an image cannot be read.
    """
    if not images:
        raise UsageError("no images: expected at least one image file.")
    run = read_trained(workdir)
    config, info, mesh = run.config, run.info, run.mesh
    task = task_of(info)
    if not isinstance(task, Classification) or run.assembly.fit is BARE:
        raise UserError(
            f"{workdir} holds a run of protocol {config.protocol!r} on {info.label.words}: expected"
            " one that has trained a classifier, whose probabilities this writes, or --masks FOLDER"
            " for one on masks."
        )
    measured = predict_split(
        evaluation_step(run.assembly, config, run.pixels, task, mesh, run.placement),
        run.arrays,
        batches_of_files(
            images, info, config.data.prepared_size, parallel.whole_shares(mesh, batch_size)
        ),
        len(images),
        mesh,
    )
    del measured["labels"]  # which say nothing
    said = task.predictions(measured, Rows([str(path) for path in images]))
    chosen = Result.read(workdir).test.choices
    return dataclasses.replace(said, thresholds=chosen.get("thresholds", {}))


def batches_of_files(
    images: Sequence[Path], info: DatasetInfo, size: int, batch_size: int
) -> Iterator[Batch]:
    """Yield decoded images in padded batches, with labels that say nothing.

    Raises:
      UserError: before the first batch, one is no file; later, one is no image.
    """
    for path in images:
        check_file(path)
    shape = batch_size, *info.label.shape(len(info.classes), size)
    for start in range(0, len(images), batch_size):
        paths = images[start : start + batch_size]
        pixels = np.zeros((batch_size, size, size, info.channels), np.uint8)
        for i, path in enumerate(paths):
            pixels[i] = load_image(path, info.channels, size)
        index = np.full(batch_size, -1, np.int32)
        index[: len(paths)] = np.arange(start, start + len(paths))
        yield Batch(
            inputs=pixels,
            labels=np.full(shape, info.label.padding, info.label.dtype),
            mask=(index >= 0).astype(np.float32),
            index=index,
        )
