"""Class probabilities for new images from a finished run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from fmi_jax import metrics, parallel, runtime
from fmi_jax.assembly import assemble, evaluation_step, initial_arrays, placement_of
from fmi_jax.checkpoints.run import RunCheckpoints
from fmi_jax.data.images import load_image
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError, UserError
from fmi_jax.report.predictions import Predictions
from fmi_jax.report.result import Result
from fmi_jax.training.evaluation import predict_split
from fmi_jax.types import Batch, Task
from fmi_jax.workdir import RunRecord


def predict(workdir: Path, images: Sequence[Path], batch_size: int = 32) -> Predictions:
    """Classify image files with the best checkpoint of the run in `workdir`.

    The files go through the same decoding, resizing and normalisation as the prepared data.

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
    runtime.configure()
    result = Result.read(workdir)
    record = RunRecord.read(workdir)
    if record is None:
        raise UserError(f"{workdir} holds no run.json: expected the folder of a finished run.")
    config, info = record.config, DatasetInfo.from_json(record.dataset)

    mesh = parallel.make_mesh()
    assembly = assemble(config, info.channels, len(info.classes))
    placement = placement_of(assembly, config, mesh)
    shapes = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=placement[name])
        for name, shape in assembly.partition.shapes(tuple(assembly.partition.variables)).items()
    }
    learned = RunCheckpoints(workdir / "checkpoints").restore_model(
        result.best.step,
        {
            "params": {name: shapes[name] for name in assembly.partition.params},
            "stats": {name: shapes[name] for name in assembly.partition.stats},
        },
    )
    arrays = learned["params"] | learned["stats"]
    if assembly.partition.frozen:
        drawn = initial_arrays(assembly, config, placement)
        arrays |= {name: drawn[name] for name in assembly.partition.frozen}

    share = mesh.shape["data"]
    outputs = predict_split(
        evaluation_step(assembly, config, info, mesh, placement),
        arrays,
        _batches(images, info, config.data.prepared_size, -(-batch_size // share) * share),
        len(images),
        mesh,
    )
    return Predictions(
        task=info.task,
        classes=info.classes,
        ids=[str(path) for path in images],
        probabilities=metrics.probabilities(info.task, outputs.logits),
    )


def _batches(
    images: Sequence[Path], info: DatasetInfo, size: int, batch_size: int
) -> Iterator[Batch]:
    """Decoded images in padded batches, with labels that say nothing."""
    label_shape = (len(info.classes),) if info.task is Task.MULTILABEL else ()
    for start in range(0, len(images), batch_size):
        paths = images[start : start + batch_size]
        pixels = np.zeros((batch_size, size, size, info.channels), np.uint8)
        for i, path in enumerate(paths):
            pixels[i] = load_image(path, info.channels, size)
        index = np.full(batch_size, -1, np.int32)
        index[: len(paths)] = np.arange(start, start + len(paths))
        yield Batch(
            images=pixels,
            labels=np.zeros((batch_size, *label_shape), np.int32),
            mask=(index >= 0).astype(np.float32),
            index=index,
        )
