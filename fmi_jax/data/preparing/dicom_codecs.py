"""A pydicom plugin that decodes JPEG-LS, lossless JPEG and 12-bit JPEG with imagecodecs.

It also decodes JPEG 2000 of which Pillow makes nothing.

Its libraries (libjpeg-turbo, CharLS) have free licences and survive damaged data. Of the plugins
that pydicom knows for lossless JPEG, one ends the whole process on damaged data (GDCM 3.2.6,
measured) and the other is under the GPL (pylibjpeg-libjpeg); only the latter reads 12 bits.
"""

import importlib.util

from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner

_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)

JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
"""Transfer syntaxes of JPEG 2000, which Pillow decodes first."""

DECODER_DEPENDENCIES = dict.fromkeys(
    (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, *_JPEG_LS, *JPEG_2000),
    ("imagecodecs",),
)
"""Packages that each transfer syntax needs; part of pydicom's plugin interface."""


def is_available(syntax: str) -> bool:
    """Test whether `syntax` can be decoded here; part of pydicom's plugin interface."""
    return syntax in DECODER_DEPENDENCIES and importlib.util.find_spec("imagecodecs") is not None


def decode_frame(data: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame and set its format on `runner`; part of pydicom's plugin interface."""
    import imagecodecs  # an optional dependency

    if runner.transfer_syntax in _JPEG_LS:
        pixels = imagecodecs.jpegls_decode(data)
    elif runner.transfer_syntax in JPEG_2000:
        pixels = imagecodecs.jpeg2k_decode(data)
        if runner.samples_per_pixel == 3:
            runner.set_option("photometric_interpretation", "RGB")  # the library has converted it
    elif runner.samples_per_pixel == 1:
        pixels = imagecodecs.jpeg8_decode(data)
    else:  # The same colour space on both sides: pydicom itself converts, if needed.
        pixels = imagecodecs.jpeg8_decode(data, colorspace="rgb", outcolorspace="rgb")
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    runner.set_option("planar_configuration", 0)
    return pixels.tobytes()
