"""Mask decoding: from the files of an image to the class, or the classes, of each of its pixels.

A mask is a grey, palette or binary image of the size of the upright image, or of the one size at
which all masks of its data set were drawn; in a palette the index counts, not the colour. Black and
white stored in colour is grey. 0 is the background. With two classes every other value is class 1,
so that masks of 0 and 255 do; with more the value is the index of the class, and any other is
refused. Several files are united; where they overlap, the highest class counts. Where each file is
a class of its own (`RawExample.layers`), every value but 0 is that class, and pixels keep all of
theirs.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from fmi_jax.data.labels import Label, resized_maps
from fmi_jax.data.preparing.images import reason
from fmi_jax.data.preparing.pixel_limit import check_size
from fmi_jax.errors import UserError
from fmi_jax.paths import fault_of_file

# This module runs in worker processes, so it imports neither jax nor what imports it.

FORMATS = ("PNG", "TIFF", "BMP", "GIF")
"""Formats of masks. JPEG and WEBP are left out: they blur class ids."""

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Suffixes of file names that may hold a mask; other names in a table are refused unread."""

RESIZES = ("nearest", "area")
"""Ways to resize a mask: by the class at the centre of a pixel, or by the area of each class."""

_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_COLOUR_MODES = ("LA", "RGB", "RGBA")


def read_mask(
    paths: Sequence[Path],
    *,
    size: tuple[int, int],
    num_classes: int,
    layers: Sequence[int] = (),
) -> tuple[UInt8[np.ndarray, "h w"], list[str]]:
    """Read and unite the mask files of an image; returns the mask and the files' SHA-256.

    Args:
      paths: mask files.
      size: width and height that every file must have, upright.
      num_classes: number of classes, background included.
      layers: class of each file, for `Label.LAYERS`; none: the values of pixels are classes.

    Raises:
      UserError: a file cannot be used; the message names it.
    """
    mask, digests = np.zeros(size[::-1], np.uint8), []
    for i, path in enumerate(paths):
        if fault := fault_of_file(path):
            raise UserError(f"mask {path.name}: file {fault}")
        try:
            data = path.read_bytes()
            found = _classes(_decode(data, size), 2 if layers else num_classes)
        except UserError as error:
            raise UserError(f"mask {path.name}: {error}") from None
        except Exception as error:  # decoders may raise anything on hostile bytes
            raise UserError(f"mask {path.name}: cannot be read ({reason(error)})") from None
        if layers:
            mask |= found << layers[i]
        else:
            np.maximum(mask, found, out=mask)
        digests.append(hashlib.sha256(data).hexdigest())
    return mask, digests


def fill_runs(
    runs: Sequence[tuple[int, int]], *, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Make the mask whose pixels of class 1 are given as runs; see `RawExample.runs`.

    Args:
      runs: start and length of each run.
      size: width and height of the mask.

    Raises:
      UserError: a run leaves the mask.
    """
    width, height = size
    pixels = np.zeros(width * height, np.uint8)
    for start, length in runs:
        if not 0 <= start <= start + length <= len(pixels):
            raise UserError(
                f"mask: a run of {length} pixels at {start} leaves the {width} x {height} pixels"
            )
        pixels[start : start + length] = 1
    return pixels.reshape(width, height).T


def resize_mask(
    mask: UInt8[np.ndarray, "h w"] | None,
    *,
    size: int,
    label: Label = Label.MAP,
    num_classes: int = 2,
    how: str = RESIZES[0],
) -> UInt8[np.ndarray, "size size"]:
    """Stretch a mask as `resize_image` does an image; None: background.

    By area, a pixel has the class that covers most of it, the highest of equals; where masks
    overlap, every class that covers at least half of it.

    Args:
      mask: raw mask.
      size: side of the new one.
      label: form of the mask.
      num_classes: number of classes.
      how: one of `RESIZES`.
    """
    if mask is None:
        return np.zeros((size, size), np.uint8)
    if how == "nearest":
        return resized_maps(mask[None], size, size)[0]
    found, most = np.zeros((size, size), np.uint8), np.zeros((size, size), np.int64)
    for c in range(num_classes):
        area = _areas(_areas(label.pixels_of(mask, c), size).T, size).T
        if label is Label.LAYERS:
            found |= (2 * area >= mask.size).astype(np.uint8) << c
        else:
            found[area >= most] = c
            np.maximum(most, area, out=most)
    return found


def _areas(values: np.ndarray, new: int) -> np.ndarray:
    """Add up the parts of rows in each of `new` rows, exactly: a whole row counts `new` times."""
    old, width = values.shape
    below = np.zeros((old + 2, width), np.int32 if values.dtype == bool else np.int64)
    np.cumsum(values, axis=0, out=below[1:-1])
    whole, part = np.divmod(np.arange(new + 1) * old, new)  # where the new rows begin and end
    edges = below[whole].astype(np.int64) * new
    edges += part[:, None] * np.where(part[:, None] > 0, below[whole + 1] - below[whole], 0)
    return np.diff(edges, axis=0)


def _decode(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode to whole numbers `[h, w]`."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(image.width, image.height)
    if getattr(image, "n_frames", 1) > 1:
        raise UserError(f"{getattr(image, 'n_frames', 1)} frames; expected a single image")
    grey = image.mode in _MODES
    if not grey and image.mode not in _COLOUR_MODES:
        raise UserError(_wrong_mode(image))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.size != size:
        raise UserError(
            f"{image.width} x {image.height} pixels; expected those of its image"
            f" (or of all masks of its data set), {size[0]} x {size[1]}"
        )
    return np.asarray(image) if grey else _black_and_white(image)


def _black_and_white(image: Image.Image) -> np.ndarray:
    """Reduce opaque black and white to one channel; any other colour is refused."""
    bands = [np.asarray(band) for band in image.split()]
    opaque = image.mode == "RGB" or (bands.pop() == 255).all()
    if not opaque or any(not np.isin(band, (0, 255)).all() for band in bands):
        raise UserError(_wrong_mode(image))
    if any((band != bands[0]).any() for band in bands):
        raise UserError(_wrong_mode(image))
    return bands[0]


def _wrong_mode(image: Image.Image) -> str:
    return (
        f"pixels of mode {image.mode!r}; expected a grey, palette or binary image, whose values"
        " are classes, or colours that are black and white alone"
    )


def _classes(values: np.ndarray, num_classes: int) -> UInt8[np.ndarray, "h w"]:
    """Convert the values of pixels to classes."""
    if num_classes == 2:
        return (values != 0).astype(np.uint8)
    if values.dtype == bool or ((values >= 0) & (values < num_classes)).all():
        return values.astype(np.uint8)
    wrong = values[(values < 0) | (values >= num_classes)]
    raise UserError(
        f"value {int(wrong[0])} is no class; expected 0 (background) to {num_classes - 1}"
    )
