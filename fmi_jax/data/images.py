"""From an image file to the pixels a network sees: one policy for preparation and prediction.

1. The header is read first: a format, number of frames or number of pixels that is not allowed
   is refused before anything is decoded. A file that is cut short or damaged is refused.
2. The EXIF orientation is applied.
3. The channels become RGB or grey ("L", ITU-R 601 luma) as Pillow converts them: palettes are
   looked up, CMYK is converted, transparency is dropped, as the reference does. Of 16-bit values
   the high byte is kept.
4. The image is resized to a square, without keeping the aspect ratio, with Pillow's antialiased
   bilinear kernel: to the last bit what torchvision's `Resize((s, s))` does (REFERENCE 1.1.3).
"""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from fmi_jax.errors import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
"""Formats that are read, whatever the file is called."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""File names that may hold an image; anything else that a table names is refused unread."""

MAX_PIXELS = 2**27
"""Largest image, 134 megapixels: a mammogram has 30, a decompression bomb thousands."""

# Between 89 and 179 megapixels Pillow only warns; MAX_PIXELS decides here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_image(path: Path, channels: int, size: int) -> UInt8[np.ndarray, "h w c"]:
    """Read one image file as prepared data would hold it, `[size, size, channels]`.

    Raises:
      UserError: the file is missing or not an image that can be used; the message names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected an image file.") from None
    try:
        return resize_image(decode_image(data, channels=channels), size=size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def decode_image(data: bytes, *, channels: int) -> Image.Image:
    """The upright image in the bytes of a file, in mode "RGB" (3 channels) or "L" (1).

    Raises:
      UserError: why these bytes cannot be used, without the name of a file.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"more than {MAX_PIXELS / 1e6:.0f} megapixels") from None
    except Exception as error:  # Pillow's parsers raise anything on hostile bytes.
        raise UserError(f"not an image ({_reason(error)}); expected {', '.join(FORMATS)}") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{image.width} x {image.height} pixels, more than {MAX_PIXELS / 1e6:.0f} megapixels"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a JPEG with a preview behind it.
        raise UserError(f"{frames} frames; expected a single image")
    try:
        image.load()
        return _to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"damaged or cut short ({_reason(error)})") from None


def resize_image(image: Image.Image, *, size: int) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of `image`, stretched to `[size, size, channels]`."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise UserError("floating-point pixels, whose range is not known; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError("pixels of more than 16 bits; expected 8 or 16 bits")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert(mode)


def _reason(error: Exception) -> str:
    return str(error).split("<_io")[0].strip() or type(error).__name__
