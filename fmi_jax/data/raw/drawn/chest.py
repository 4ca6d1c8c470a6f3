"""Draws rough frontal chest radiographs: dark lungs, ribs, a heart, and pale findings."""

import math

import numpy as np
from jaxtyping import Num, UInt8

_SPOT = (0.11, 0.13)  # half the width and half the height of a finding


def radiograph(
    rng: np.random.Generator, findings: Num[np.ndarray, "k"], strength: float = 60
) -> UInt8[np.ndarray, "h w"]:
    """Draw one radiograph of 61 to 90 pixels a side.

    Args:
      rng: generator that decides everything that differs between patients.
      findings: 0 or 1 each; finding `i` is a pale spot that has its own place in the lungs.
      strength: brightness of a spot, in grey values.
    """
    height, width = rng.integers(61, 91, 2)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    x = x + rng.normal(0, 0.04)
    y = y + rng.normal(0, 0.04)

    def bump(at_x: float, at_y: float, wide: float, high: float) -> np.ndarray:
        return np.exp(-((((x - at_x) / wide) ** 2 + ((y - at_y) / high) ** 2) ** 2))

    image = 190 * bump(0, 0.2, 1.0, 1.3)
    lungs = bump(-0.42, 0, 0.3, 0.65) + bump(0.42, 0, 0.3, 0.65)
    image -= lungs * (95 + 12 * np.cos(18 * (y + 0.25 * np.abs(x))))  # ribs
    image += 70 * bump(0.14, 0.32, 0.24, 0.3)
    for i, present in enumerate(findings):
        spot = bump(*_place(i, len(findings)), *_SPOT)
        image += present * strength * rng.uniform(0.7, 1.3) * spot
    image *= rng.uniform(0.8, 1.15)
    image += rng.normal(0, 7, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def spot_box(finding: int, count: int) -> tuple[float, float, float, float]:
    """Find the box around a finding, but for where the patient stands.

    Args:
      finding: number of the finding.
      count: number of findings that may be drawn.

    Returns:
      Left, top, width and height, in shares of the image's sides.
    """
    (x, y), (wide, high) = _place(finding, count), _SPOT
    return (x - wide + 1) / 2, (y - high + 1) / 2, wide, high


def _place(finding: int, count: int) -> tuple[float, float]:
    """Centre of a finding, from -1 to 1."""
    side = 1 if finding % 2 else -1
    turn = 2 * math.pi * (finding // 2) / max(count // 2, 1)
    return side * (0.42 + 0.15 * math.cos(turn)), 0.42 * math.sin(turn)
