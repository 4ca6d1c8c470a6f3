"""Raw images of the JSRT database: 16-bit numbers without a header, of which 12 bits count.

They are square, most significant byte first. As on the film, a high value is dark: it is inverted
here, and the high 8 of the 12 bits are kept.
"""

import math

import numpy as np
from jaxtyping import UInt8

from fmi_jax.data.preparing.pixel_limit import check_size
from fmi_jax.errors import UserError

# This module runs in worker processes, so it imports neither jax nor what imports it.

SUFFIXES = (".img",)
"""Suffix of the files, which nothing else tells from other bytes."""

_LEVELS = 2**12


def decode_jsrt(data: bytes) -> UInt8[np.ndarray, "h w"]:
    """Decode the bytes of a file.

    Raises:
      UserError: they are no square of 16-bit numbers, or one has more than 12 bits.
    """
    side = math.isqrt(len(data) // 2)
    if not data or 2 * side * side != len(data):
        raise UserError(
            f"{len(data)} bytes, cut short or no raw image of JSRT; expected a square of 16-bit"
            " pixels (2048 x 2048: 8388608 bytes)"
        )
    check_size(side, side)
    values = np.frombuffer(data, ">u2").reshape(side, side)
    if values.max() >= _LEVELS:
        raise UserError(f"value {values.max()}; expected 12 bits, 0 to {_LEVELS - 1}")
    return ((_LEVELS - 1 - values) >> 4).astype(np.uint8)
