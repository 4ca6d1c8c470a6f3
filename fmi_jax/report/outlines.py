"""Examples of segmentation: images with the outlines of their true and predicted masks."""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from fmi_jax.data.labels import IGNORE

TRUE_COLOUR = (0, 230, 230)
PREDICTED_COLOUR = (255, 200, 0)
"""Colours of the outlines: cyan and amber, told apart with any colour vision."""

_LEAST_SIDE = 192  # pixels of a drawn image, so that two outlines side by side can be seen


def outlined(
    image: UInt8[np.ndarray, "h w c"],
    true: UInt8[np.ndarray, "h w"],
    predicted: UInt8[np.ndarray, "h w"],
) -> Image.Image:
    """Draw the outlines of every foreground class over an image, enlarged if it is small.

    Where both run along the same pixel, every other pixel shows the true one.

    Args:
      image: pixels, one channel or three.
      true, predicted: class of each pixel; pixels of `IGNORE` have no outline.
    """
    times = -(-_LEAST_SIDE // min(image.shape[:2]))
    image, true, predicted = (
        x.repeat(times, axis=0).repeat(times, axis=1) for x in (image, true, predicted)
    )
    pixels = np.repeat(image, 3 // image.shape[-1], axis=-1)
    of_true, of_predicted = outline(true), outline(predicted)
    rows, columns = np.indices(true.shape)
    pixels[of_predicted] = PREDICTED_COLOUR
    pixels[of_true & ~(of_predicted & ((rows + columns) % 2 == 1))] = TRUE_COLOUR
    return Image.fromarray(pixels)


def outline(classes: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Find the foreground pixels beside a pixel of another class, or at the edge of the image."""
    padded = np.pad(classes, 1)
    beside = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    edge = np.any([near != classes for near in beside], axis=0)
    return edge & (classes > 0) & (classes != IGNORE)
