"""DICOM decoding to 8-bit grey or RGB, as a viewer shows the file when it opens.

1. One image: a DICOM file with a preamble and "DICM", one frame, up to 16 bits, and a transfer
   syntax of `DECODERS`. Each syntax is always decoded by the same library, so the pixels do not
   depend on what else is installed. Only where Pillow refuses JPEG 2000 imagecodecs is asked.
2. Grey (MONOCHROME1, MONOCHROME2): stored values go through the modality transformation (its
   table, else rescale slope and intercept), then the VOI transformation (its table, else the
   first window: LINEAR, LINEAR_EXACT or SIGMOID) to 0..1. Without a VOI transformation 0..1 is
   the full range that the stored bits can express. It is never the range of one image, which would
   give brightness another meaning in every file. Without a window, an image of more than 8 bits
   that spans fewer than `MIN_LEVELS` grey levels is refused; so is a window that leaves one level
   of many, or is not finite. MONOCHROME1 is inverted last.
3. RGB, YBR and PALETTE COLOR become RGB; modality and VOI do not apply to colour.
4. 0..1 becomes 256 equal steps, `min(floor(256 y), 255)`: for values of 8 bits or more without
   a window exactly their high byte, as for 16-bit PNG.

Overlays, padding values, colour profiles, shutters, orientation and pixel spacing are ignored.
Nothing but the pixels leaves a file: who the patient is stays there, and no message quotes text of
a header, for a damaged file may have a name in any place.
Source: DICOM PS3.3 C.7.6.3 (pixels), C.11.1 (modality), C.11.2 (VOI).
"""

import contextlib
import io
import logging
import math
import re
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
from jaxtyping import UInt8
from pydicom import config, uid
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from fmi_jax.data.preparing import dicom_codecs
from fmi_jax.data.preparing.pixel_limit import MAX_PIXELS, check_size
from fmi_jax.errors import UserError

DECODERS = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.DeflatedExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.RLELossless: "pydicom",
    uid.JPEGBaseline8Bit: "pillow",
    **dict.fromkeys(dicom_codecs.DECODER_DEPENDENCIES, "imagecodecs"),
    **dict.fromkeys(dicom_codecs.JPEG_2000, "pillow"),
}
"""Supported transfer syntaxes, and pydicom's name of the plugin that decodes each."""

MIN_LEVELS = 32
"""Grey levels that an image without a window must span; with fewer it is a grey square."""

for _syntax in dicom_codecs.DECODER_DEPENDENCIES:
    get_decoder(_syntax).add_plugin("imagecodecs", (dicom_codecs.__name__, "decode_frame"))

_REQUIRED = (
    *("PixelData", "Rows", "Columns", "BitsStored", "PixelRepresentation"),
    "PhotometricInterpretation",
)
_PHOTOMETRIC = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB"),
    *("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
)
_OTHER_PHOTOMETRIC = ("HSV", "ARGB", "CMYK", "XYB", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_DAMAGED = "damaged or cut short"

# Odd header values are no reason to refuse an image, nor to fill the screen with warnings. A fault
# that ends in an error is in the message of that error.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def decode_dicom(data: bytes) -> UInt8[np.ndarray, "h w *c"]:
    """Decode the one image in a DICOM file, `[h, w]` for grey and `[h, w, 3]` for RGB.

    Raises:
      UserError: says why there is no such image, and quotes nothing of the header but numbers.
    """
    try:
        return _decode(data)
    except UserError:
        raise
    except Exception as error:  # pydicom may raise anything on hostile bytes, and quote them
        raise UserError(f"{_DAMAGED} (a header that gives {type(error).__name__})") from None


def _decode(data: bytes) -> UInt8[np.ndarray, "h w *c"]:
    dataset = _read(data)
    if missing := [name for name in _REQUIRED if name not in dataset]:
        sop_class = dataset.file_meta.get("MediaStorageSOPClassUID")
        kind = _name(sop_class) or "of unknown kind"
        raise UserError(f"DICOM ({kind}) without {', '.join(missing)}: cut short, or not an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(f"{frames} frames; expected a single image")
    check_size(dataset.Columns, dataset.Rows)
    if not 1 <= dataset.BitsStored <= 16:
        raise UserError(f"pixels of {dataset.BitsStored} bits; expected 1 to 16")
    photometric = dataset.PhotometricInterpretation
    if photometric not in _PHOTOMETRIC:
        found = photometric if photometric in _OTHER_PHOTOMETRIC else "unknown"
        raise UserError(f"photometric interpretation {found}; expected {', '.join(_PHOTOMETRIC)}")
    stored = _stored_values(dataset)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)[..., :3]  # the fourth is transparency
        return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
    if stored.ndim == 2:
        return _grey(stored, dataset)
    return _levels(_full_range(_possible(stored, dataset)))[stored]


def _read(data: bytes) -> pydicom.FileDataset:
    file = io.BytesIO(data)
    file.seek(132)
    syntax = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2
    ).get("TransferSyntaxUID")
    if syntax not in DECODERS:
        found = _name(syntax) or f"{'an unknown' if syntax else 'no'} transfer syntax"
        raise UserError(
            f"DICOM with {found}, which is not read;"
            " expected uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000"
        )
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        inflate.decompress(data[file.tell() :], 8 * MAX_PIXELS)
        if inflate.unconsumed_tail:
            raise UserError(f"more than {8 * MAX_PIXELS / 1e6:.0f} MB when decompressed")
    return pydicom.dcmread(io.BytesIO(data))


def _stored_values(dataset: pydicom.FileDataset) -> np.ndarray:
    """Read samples as integers, `[h, w]` or `[h, w, 3]`; other colour spaces become RGB here."""
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = DECODERS[syntax]
    if plugin and plugin not in get_decoder(syntax).available_plugins:
        raise UserError(
            f"compressed as {syntax.name}, which needs the package {plugin}: pip install {plugin}"
        )
    try:
        return pixel_array(dataset, decoding_plugin=plugin)
    except RuntimeError as error:  # "... by all available plugins:\n\t" and the requested plugin's
        if syntax in dicom_codecs.JPEG_2000 and dicom_codecs.is_available(syntax):
            with contextlib.suppress(Exception):  # the first decoder's reason is the clearer one
                return pixel_array(dataset, decoding_plugin="imagecodecs")
        said = _unquoted(str(error).rpartition("\n")[2])
    except Exception as error:
        said = _unquoted(str(error))
    raise UserError(f"{_DAMAGED} ({said})")


def _unquoted(words: str) -> str:
    """What a decoder says, on one line, up to where it quotes the file."""
    said = re.split("['\"]", " ".join(words.split()))[0][:200].strip()
    return said if said.count(" ") > 3 else "its header does not fit its pixels"


def _name(found: Any) -> str:
    """The standard's name of a UID; empty for any other, which could be that of a patient."""
    if not found:
        return ""
    name = uid.UID(found, validation_mode=config.IGNORE).name
    return "" if name == found else name


def _grey(stored: np.ndarray, dataset: pydicom.Dataset) -> UInt8[np.ndarray, "h w"]:
    values = _rescale(_possible(stored, dataset), dataset)
    fractions = _window(values, dataset)
    pixels = _levels(_full_range(values) if fractions is None else fractions)[stored]
    if fractions is None and dataset.BitsStored > 8 and np.ptp(pixels) < MIN_LEVELS - 1:
        raise UserError(
            f"no window in the header, and of the range of {dataset.BitsStored} bits the pixels"
            f" span {np.ptp(pixels) + 1} of 256 grey levels; expected a window or"
            f" at least {MIN_LEVELS}"
        )
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 255 - pixels
    if fractions is not None and np.ptp(stored) and not np.ptp(pixels):
        raise UserError(
            f"the window in the header makes every pixel {pixels.flat[0]}, of stored values from"
            f" {stored.min()} to {stored.max()}; expected one that shows them"
        )
    return pixels


def _possible(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """List every value that the stored bits can express, ordered for lookup by stored value.

    All that follows is done to these few values instead of the many pixels. Negative values come
    last, where a negative index finds them.
    """
    count = 2**dataset.BitsStored
    low = -count // 2 if dataset.PixelRepresentation else 0
    if stored.min() < low or stored.max() >= low + count:
        raise UserError(
            f"pixel values outside the {dataset.BitsStored} bits that the header gives them"
        )
    return np.roll(np.arange(low, low + count), low)


def _rescale(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Apply the modality transformation, which gives the manufacturer's stored values a meaning."""
    if (table := _table(dataset, "ModalityLUTSequence")) is not None:
        return _look_up(stored, table)[0]
    slope, intercept = _first(dataset, "RescaleSlope"), _first(dataset, "RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    with np.errstate(over="ignore"):
        values = stored * slope + intercept
    if not np.isfinite(values).all():
        raise UserError(f"rescale slope {slope:g} and intercept {intercept:g} exceed every number")
    return values


def _window(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Apply the VOI transformation to 0..1; None if the file has none."""
    if (table := _table(dataset, "VOILUTSequence")) is not None:
        values, largest = _look_up(values, table)
        return values / largest
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    shape = dataset.get("VOILUTFunction") or "LINEAR"
    if shape not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UserError("unknown VOI LUT function; expected LINEAR, LINEAR_EXACT or SIGMOID")
    if not (width >= 1 if shape == "LINEAR" else width > 0):
        raise UserError(f"window width {width:g}; expected 1 or more")
    if shape == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if shape == "LINEAR":
        centre, width = centre - 0.5, width - 1
    low = centre - width / 2
    return (values - low) / width if width else (values > low).astype(float)


def _full_range(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if low == high:
        raise UserError(f"every stored value means {low:g}; expected a rescale slope other than 0")
    return (values - low) / (high - low)


def _table(dataset: pydicom.Dataset, name: str) -> pydicom.Dataset | None:
    """First item of a sequence of tables; None if there is none, or one without a table."""
    item = next(iter(dataset.get(name) or ()), None)
    return item if item is not None and item.get("LUTDescriptor") and item.get("LUTData") else None


def _look_up(values: np.ndarray, item: pydicom.Dataset) -> tuple[np.ndarray, int]:
    """Map `values` through a table of PS3.3 C.11; also returns the largest possible value."""
    entries, first, bits = item.LUTDescriptor
    entries = entries or 2**16
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if item.original_encoding[1] else ">"
        table = np.frombuffer(table, f"{order}u{2 if len(table) >= 2 * entries else 1}")
    at = np.clip(np.floor(values) - first, 0, entries - 1).astype(int)
    return np.asarray(table)[at], 2**bits - 1


def _levels(fractions: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Quantise 0..1 to 256 equal steps."""
    return np.clip(np.floor(256 * fractions), 0, 255).astype(np.uint8)


def _first(dataset: pydicom.Dataset, name: str) -> float | None:
    """First of several alternative values in a file, which is the one its maker prefers.

    Raises:
      UserError: it is no finite number.
    """
    value = dataset.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    if value is None:
        return None
    try:
        number = float(value)
    except (ValueError, TypeError):
        raise UserError(f"{name} is no number; expected a finite number") from None
    if not math.isfinite(number):
        raise UserError(f"{name} {number}; expected a finite number")
    return number
