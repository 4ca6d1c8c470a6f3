"""Image decoding: from a file to the network's pixels, the same for preparation and prediction.

1. The header is read first: a format, number of frames or number of pixels that is not allowed
   is refused before anything is decoded. A truncated or damaged file is refused.
2. The EXIF orientation is applied. DICOM goes through `dicom`, one row of an HDF5 file through
   `hdf5`, a raw image of the JSRT database through `jsrt`; all give 8 bits.
3. The channels become RGB or grey ("L", ITU-R 601 luma) as Pillow converts them: palettes are
   looked up, CMYK is converted, transparency is dropped. Of 16-bit values the high byte is kept.
4. The image is resized to a square, without keeping the aspect ratio, with Pillow's antialiased
   bilinear kernel. The result is bit-identical to torchvision's `Resize((s, s))`.
"""

import hashlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from fmi_jax.data.preparing import hdf5, jsrt
from fmi_jax.data.preparing.pixel_limit import MAX_PIXELS, check_size
from fmi_jax.errors import UserError
from fmi_jax.paths import fault_of_file

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
"""Formats that Pillow reads here; they and DICOM are recognised by content, not by file name."""

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"),
    *hdf5.SUFFIXES,
    *jsrt.SUFFIXES,
)
"""Suffixes of file names that may hold an image; other names in a table are refused unread."""

# Between 89 and 179 megapixels Pillow only warns; `check_size` decides here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class RawImage(NamedTuple):
    """One raw image, upright and in the requested channels.

    Attributes:
      image: image in mode "RGB" or "L", at the raw size.
      sha256: checksum of the file's bytes; of the image's own bytes if the file holds many.
    """

    image: Image.Image
    sha256: str


def read_image(path: Path, *, channels: int, item: int | None = None) -> RawImage:
    """Read one raw image.

    Args:
      path: file of any supported format.
      channels: 3 for colour, 1 for grey.
      item: index of the image in a file that holds many (HDF5), from 0.

    Raises:
      UserError: says why there is no usable image, without the name of the file.
    """
    if (fault := fault_of_file(path)) and not path.is_dir():
        raise UserError(f"image file {fault}")
    try:
        if path.suffix.lower() in hdf5.SUFFIXES:
            if item is None:
                raise UserError("an HDF5 file holds many images; expected the number of one")
            pixels = hdf5.read_item(path, item)
            image, data = Image.fromarray(pixels), pixels.tobytes()
            return RawImage(_to_mode(image, channels), hashlib.sha256(data).hexdigest())
        if item is not None:
            raise UserError(f"item {item} of a file that holds one image; expected an HDF5 file")
        data = path.read_bytes()
    except UserError:
        raise
    except Exception as error:  # h5py, too, may raise anything on hostile bytes
        why = getattr(error, "strerror", None) or reason(error)
        raise UserError(f"image file cannot be read ({why})") from None
    if path.suffix.lower() in jsrt.SUFFIXES:
        image = _to_mode(Image.fromarray(jsrt.decode_jsrt(data)), channels)
    else:
        image = decode_image(data, channels=channels)
    return RawImage(image, hashlib.sha256(data).hexdigest())


def load_image(path: Path, channels: int, size: int) -> UInt8[np.ndarray, "h w c"]:
    """Read one image file in the form of prepared data, `[size, size, channels]`.

    Raises:
      UserError: the file is missing or not a usable image; the message names it.
    """
    try:
        return resize_image(read_image(path, channels=channels).image, size=size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def decode_image(data: bytes, *, channels: int) -> Image.Image:
    """Decode the bytes of a file to an upright image, in mode "RGB" (3 channels) or "L" (1).

    Raises:
      UserError: says why these bytes cannot be used, without the name of a file.
    """
    try:
        image = _open_dicom(data) if data[128:132] == b"DICM" else _open(data)
        return _to_mode(ImageOps.exif_transpose(image), channels)
    except UserError:
        raise
    except Exception as error:  # decoders may raise anything on hostile bytes
        raise UserError(f"damaged or cut short ({reason(error)})") from None


def resize_image(image: Image.Image, *, size: int) -> UInt8[np.ndarray, "h w c"]:
    """Stretch `image` to pixels `[size, size, channels]`."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"more than {MAX_PIXELS / 1e6:.0f} megapixels") from None
    except Exception as error:
        expected = ", ".join((*FORMATS, "DICOM"))
        raise UserError(f"not an image ({reason(error)}); expected {expected}") from None
    check_size(image.width, image.height)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO is a JPEG followed by a preview
        raise UserError(f"{frames} frames; expected a single image")
    image.load()
    return image


def _open_dicom(data: bytes) -> Image.Image:
    from fmi_jax.data.preparing.dicom import decode_dicom  # seldom needed, and slow to import

    return Image.fromarray(decode_dicom(data))


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F":
        raise UserError("floating-point pixels, whose range is not known; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError("pixels of more than 16 bits; expected 8 or 16 bits")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def reason(error: Exception) -> str:
    """Words for an error of a library on hostile bytes: short, on one line, never empty."""
    return " ".join(str(error).split("<_io")[0].split())[:200] or type(error).__name__
