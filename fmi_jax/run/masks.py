"""Masks for new images from a finished run."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from fmi_jax import atomic, parallel
from fmi_jax.data.labels import Label, resized_maps
from fmi_jax.data.preparing.images import read_image
from fmi_jax.errors import UsageError, UserError
from fmi_jax.report.charts import palette
from fmi_jax.run.assembly import evaluation_step
from fmi_jax.run.network import Trained, read_trained
from fmi_jax.run.predict import batches_of_files
from fmi_jax.tasks.outlines import connected
from fmi_jax.tasks.registry import task_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Making of masks from what a network says.

    Attributes:
      flips: True to average the probabilities over the image and its mirror images.
      largest: True to keep the largest connected part of each class alone.
      fill_holes: True to fill what a class encloses.
    """

    flips: bool = False
    largest: bool = False
    fill_holes: bool = False


def write_masks(
    workdir: Path,
    images: Sequence[Path],
    table: Path,
    folder: Path,
    options: MaskOptions,
    batch_size: int = 32,
) -> None:
    """Write the masks of image files as a CSV and as PNGs.

    The CSV has a line for each image and class but the background: id (the path as given), class,
    height and width of the image, number of pixels, and their runs "start length start length"; the
    pixels are numbered from 1, down the first column, then down the next. There is a PNG for each
    image, whose pixels are the numbers of classes, or, where masks overlap, one for each of its
    classes, which is white there.

    Args:
      workdir: folder of a finished run on masks.
      images: image files.
      table: CSV to write.
      folder: folder for PNG files, at the size of the image; each is named by its image, by a
        number that tells images of one name apart, and by its class if it has one.
      options: making of the masks.
      batch_size: images per step.

    Raises:
      UsageError: no images were named.
      UserError: the run is not finished, damaged or of another task, or an image cannot be read.
    """
    if not images:
        raise UsageError("no images: expected at least one image file.")
    run = read_trained(workdir)
    classes, label = run.info.classes, run.info.label
    if not label.of_pixels:
        raise UserError(
            f"{workdir} holds a run on {run.info.label.words}: expected one on masks; without"
            " --masks its predictions are written."
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Any, ...]] = [("id", "class", "height", "width", "pixels", "runs")]
    maps = _maps(run, images, options, parallel.whole_shares(run.mesh, batch_size))
    console = Console(stderr=True)
    shown = track(maps, "masks", len(images), console=console, disable=not console.is_terminal)
    for i, (path, found) in enumerate(shown):
        stem = f"{path.stem}_{i + 1}"
        for c, name in enumerate(classes[label.background :], label.background):
            mask = label.pixels_of(found, c)
            rows.append((path, name, *mask.shape, int(mask.sum()), run_lengths(mask)))
            if label is Label.LAYERS:
                _write_png(folder / f"{stem}_{name.replace('/', '_')}.png", Image.fromarray(mask))
        if label is Label.MAP:
            picture = Image.fromarray(found)
            picture.putpalette(palette(len(classes)))
            _write_png(folder / f"{stem}.png", picture)
    atomic.write_bytes(table, atomic.csv_bytes(rows, end="\r\n"))


def _write_png(path: Path, picture: Image.Image) -> None:
    with atomic.whole_file(path) as draft:
        picture.save(draft, format="PNG")


def _maps(
    run: Trained, images: Sequence[Path], options: MaskOptions, size: int
) -> Iterator[tuple[Path, UInt8[np.ndarray, "h w"]]]:
    """Predict maps of image files, at their own sizes."""
    measured = evaluation_step(
        run.assembly,
        run.config,
        run.pixels,
        task_of(run.info),
        run.mesh,
        run.placement,
        flips=options.flips,
    )
    # What else is measured, against no labels, is left out of the program.
    step = jax.jit(lambda arrays, batch: measured(arrays, batch)["predicted_map"])
    batches = batches_of_files(images, run.info, run.config.data.prepared_size, size)
    for at, batch in enumerate(batches):
        found = jax.device_get(step(run.arrays, parallel.to_devices(run.mesh, batch)))
        for path, one in zip(images[at * size : (at + 1) * size], found, strict=False):
            cleaned = clean(one, run.info.label, len(run.info.classes), options)
            width, height = read_image(path, channels=run.info.channels).image.size
            yield path, resized_maps(cleaned[None], height, width)[0]


def clean(
    found: UInt8[np.ndarray, "h w"], label: Label, num_classes: int, options: MaskOptions
) -> UInt8[np.ndarray, "h w"]:
    """Keep the largest part of each class, and fill its holes, where that is asked for.

    Holes are filled after parts are removed. Only the background gives way: what another class has
    stays its own, unless masks overlap.
    """
    masks = np.zeros((*found.shape, num_classes), bool)
    for c in range(label.background, num_classes):
        mask = own = label.pixels_of(found, c)
        if options.largest and mask.any():
            parts, _ = connected(mask)
            mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        if options.fill_holes:
            mask = ndimage.binary_fill_holes(mask)
        if label is Label.MAP:
            mask &= own | (found == 0)
            masks[mask] = False
        masks[..., c] = mask
    return label.map_of(masks)


def run_lengths(mask: np.ndarray) -> str:
    """Write a mask `[h, w]` as runs of pixels; see `write_masks`. An empty mask is ""."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat))
    starts, ends = edges[::2], edges[1::2]
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(starts, ends, strict=True))
