"""Draws pictures of soft ellipses, whose masks are known at any size."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8


class Ellipse(NamedTuple):
    """Ellipse in a picture whose sides go from -1 to 1.

    Attributes:
      x, y: centre, from the left and from the top.
      wide, high: half its axes.
      shade: brightness that it adds, one number or red, green and blue.
      turn: angle by which it is turned, in radians.
    """

    x: float
    y: float
    wide: float
    high: float
    shade: float | tuple[float, float, float]
    turn: float = 0.0

    def distance(self, height: int, width: int) -> np.ndarray:
        """Distance of each pixel from the centre, `[h, w]`; 1 is the outline."""
        y, x = np.ogrid[: 2 * height : 2, : 2 * width : 2]
        x, y = (x + 1) / width - 1 - self.x, (y + 1) / height - 1 - self.y
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return np.hypot((x * cos + y * sin) / self.wide, (y * cos - x * sin) / self.high)

    def mask(self, height: int, width: int, *, block: int = 1) -> Bool[np.ndarray, "h w"]:
        """Pixels that it covers, `[h, w]`, in squares of `block` pixels a side."""
        covered = self.distance(height // block, width // block) < 1
        return covered.repeat(block, axis=0).repeat(block, axis=1)


def paint(
    rng: np.random.Generator,
    ellipses: Iterable[Ellipse],
    height: int,
    width: int,
    *,
    ground: float | Sequence[float],
    noise: float = 7,
) -> UInt8[np.ndarray, "h w c"]:
    """Paint ellipses on a plain ground with noise; grey where `ground` is one number.

    Args:
      rng: generator of the noise.
      ellipses: ellipses, which add up where they overlap.
      height, width: size in pixels.
      ground: brightness of the ground, one number or red, green and blue.
      noise: standard deviation of the noise, in grey values.
    """
    colour = np.atleast_1d(np.asarray(ground, float))
    image = np.broadcast_to(colour, (height, width, len(colour))).copy()
    for ellipse in ellipses:
        cover = 1 / (1 + np.exp(np.clip(12 * (ellipse.distance(height, width) - 1), -50, 50)))
        image += cover[..., None] * ellipse.shade
    image += rng.normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def chest(rng: np.random.Generator) -> dict[str, Ellipse]:
    """Place the parts of a frontal chest radiograph: lungs, heart and clavicles.

    "left" and "right" are the patient's: the left lung is on the right of the picture.
    """
    x, y = rng.normal(0, 0.04, 2)
    size = rng.uniform(0.9, 1.1)
    parts = {}
    for side, sign in (("left", 1), ("right", -1)):
        parts[f"{side} lung"] = Ellipse(x + sign * 0.42, y, 0.28 * size, 0.62 * size, -95)
        parts[f"{side} clavicle"] = Ellipse(
            x + sign * 0.4, y - 0.62, 0.36 * size, 0.06, 70, turn=-sign * rng.uniform(0.05, 0.25)
        )
    parts["heart"] = Ellipse(x + 0.12, y + 0.3, 0.3 * size, 0.3 * size, 60, turn=0.5)
    return parts
