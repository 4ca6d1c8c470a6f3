"""Draws a small raw DRIVE set: retinal photographs and the masks of their vessels."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.data.raw.drawn.ellipses import Ellipse, paint
from fmi_jax.data.raw.drawn.folder import draw_once


@draw_once(
    "Synthetic retinal photographs in the layout of DRIVE: {count}, seed {seed}.\n", count=40
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` photographs of straight vessels, the first half for the test.

    As in the real set, images are TIFF and masks GIF, and all have one size.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    height, width = 73, 71
    for i in range(1, count + 1):
        part = "test" if i <= count // 2 else "training"
        for name in ("images", "1st_manual"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        disc = rng.choice((-0.5, 0.5))
        vessels = [
            Ellipse(
                disc + 0.5 * math.cos(angle),
                0.5 * math.sin(angle),
                rng.uniform(0.4, 0.6),
                rng.uniform(0.03, 0.06),
                (-50, -60, -30),
                turn=angle,
            )
            for angle in rng.uniform(0, 2 * math.pi, 7)
        ]
        light = Ellipse(disc, 0, 0.15, 0.15, (60, 60, 40))
        field = Ellipse(0, 0, 0.95, 0.95, (150, 90, 50))
        pixels = paint(rng, [field, light, *vessels], height, width, ground=(10, 10, 10))
        Image.fromarray(pixels).save(folder / part / "images" / f"{i:02}_{part}.tif")
        covered = np.any([vessel.mask(height, width) for vessel in vessels], axis=0)
        mask = Image.fromarray(np.uint8(255) * covered)
        mask.save(folder / part / "1st_manual" / f"{i:02}_manual1.gif")
