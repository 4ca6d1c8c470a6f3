"""Pictures of where a finished run's network looks in new images."""

from collections.abc import Sequence
from pathlib import Path

import jax

from fmi_jax import atomic, parallel
from fmi_jax.report.charts import draw_chart
from fmi_jax.run.network import finished
from fmi_jax.run.predict import batches_of_files
from fmi_jax.saliency.pictures import overlays, pictures


def write_overlays(
    workdir: Path, images: Sequence[Path], folder: Path, batch_size: int = 32
) -> None:
    """Draw where the network of a run looks in image files, a PNG for each.

    Args:
      workdir: folder of a finished run.
      images: image files.
      folder: folder to write to; a PNG is named by its image, and by a number that tells images
        of one name apart.
      batch_size: images per step.

    Raises:
      UserError: the run is not finished or damaged, or an image cannot be read.
    """
    mesh = parallel.make_mesh()
    network = finished(workdir, mesh)
    compute = pictures(network.info.mean, network.info.std)
    step = network.step(mesh, compute, lambda found, batch: found)
    side, size = network.config.data.prepared_size, parallel.whole_shares(mesh, batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for batch in batches_of_files(images, network.info, side, size):
        found = jax.device_get(step(network.arrays, parallel.to_devices(mesh, batch)))
        for i, path in enumerate(images[done : done + size]):
            one = {name: value[i : i + 1] for name, value in found.items()}
            picture = draw_chart(overlays([path.name], one))
            atomic.write_bytes(folder / f"{path.stem}_{done + i + 1}.png", picture)
        done += size
