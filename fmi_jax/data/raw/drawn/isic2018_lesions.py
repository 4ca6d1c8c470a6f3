"""Draws a small raw ISIC 2018 task 1: dermoscopic photographs and the masks of their lesions."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.data.raw.drawn.ellipses import Ellipse, paint
from fmi_jax.data.raw.drawn.folder import draw_once


@draw_once(
    "Synthetic dermoscopic photographs in the layout of ISIC 2018 task 1: {count}, seed {seed}.\n",
    count=42,
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` photographs: an eighth for validation, a quarter for the test.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    parts = ["Test"] * (count // 4) + ["Validation"] * (count // 8)
    parts = ["Training"] * (count - len(parts)) + parts
    for i, part in enumerate(parts):
        images = folder / f"ISIC2018_Task1-2_{part}_Input"
        masks = folder / f"ISIC2018_Task1_{part}_GroundTruth"
        for place in (images, masks):
            place.mkdir(exist_ok=True)
            (place / "LICENSE.txt").write_text("Drawn by a program.\n")
        height, width = rng.integers(61, 97, 2)
        (x, y), (wide, high) = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.25, 0.55, 2)
        lesion = Ellipse(x, y, wide, high, (-90, -80, -60), turn=rng.uniform(0, 3))
        pixels = paint(rng, [lesion], height, width, ground=(210, 160, 140))
        Image.fromarray(pixels).save(images / f"ISIC_{i:07}.jpg", quality=90)
        mask = Image.fromarray(np.uint8(255) * lesion.mask(height, width))
        mask.save(masks / f"ISIC_{i:07}_segmentation.png")
