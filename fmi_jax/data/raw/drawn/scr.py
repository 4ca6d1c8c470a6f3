"""Draws a small raw SCR set: JSRT's raw radiographs, and masks of lungs, heart and clavicles."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.data.raw.drawn.ellipses import chest, paint
from fmi_jax.data.raw.drawn.folder import draw_once

_SIDE = 61  # pixels of a side of the images, 2048 in the real set
_MASK_SIDE = 1024  # as in the real set


@draw_once(
    "Synthetic chest radiographs in the layout of JSRT and SCR: {count}, seed {seed}.\n", count=42
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` radiographs, the first half with a nodule's name, and their masks in two folds.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    (folder / "All247images").mkdir()
    for i in range(count):
        name = f"JPC{'LN' if i < count // 2 else 'NN'}{i + 1:03}"
        parts = chest(rng)
        pixels = paint(rng, parts.values(), _SIDE, _SIDE, ground=150)[..., 0]
        dark = 4095 - 16 * pixels.astype(int)
        (folder / "All247images" / f"{name}.IMG").write_bytes(dark.astype(">u2").tobytes())
        for part in parts:
            place = folder / "scratch" / f"fold{i % 2 + 1}" / "masks" / part
            place.mkdir(parents=True, exist_ok=True)
            mask = np.uint8(255) * parts[part].mask(_MASK_SIDE, _MASK_SIDE, block=8)
            Image.fromarray(mask).save(place / f"{name}.gif")
