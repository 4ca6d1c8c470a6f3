"""Draws a small raw Montgomery set: chest radiographs and the masks of both lungs."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.data.raw.drawn.ellipses import Ellipse, chest, paint
from fmi_jax.data.raw.drawn.folder import draw_once


@draw_once(
    "Synthetic chest radiographs in the layout of the Montgomery set: {count}, seed {seed}.\n",
    count=42,
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` radiographs, the last third with tuberculosis, and a mask for each lung.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    folder = folder / "MontgomerySet"
    places = ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask")
    for place in places:
        (folder / place).mkdir(parents=True)
    for i in range(count):
        sick = int(i >= count - count // 3)
        height, width = rng.integers(61, 97, 2)
        parts = chest(rng)
        spot = Ellipse(rng.choice((-0.42, 0.42)), rng.uniform(-0.3, 0.3), 0.1, 0.1, 60 * sick)
        pixels = paint(rng, [*parts.values(), spot], height, width, ground=150)[..., 0]
        masks = (parts[f"{side} lung"].mask(height, width) for side in ("left", "right"))
        for place, image in zip(places, (pixels, *masks), strict=True):
            Image.fromarray(image).save(folder / place / f"MCUCXR_{i + 1:04}_{sick}.png")
