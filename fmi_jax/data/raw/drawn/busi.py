"""Draws a small raw BUSI set: `Dataset_BUSI_with_GT` with ultrasound images and their masks."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.data.raw.drawn.ellipses import Ellipse, paint
from fmi_jax.data.raw.drawn.folder import draw_once


@draw_once(
    "Synthetic breast ultrasound images in the layout of BUSI: {count}, seed {seed}.\n", count=42
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` images: half benign, a third malignant, the others normal.

    As in the real set, some benign images have a second mask, normal ones an empty mask, and a few
    masks are stored in colour.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    shares = {"benign": count // 2, "malignant": count // 3}
    shares["normal"] = count - sum(shares.values())
    for name, images in shares.items():
        place = folder / "Dataset_BUSI_with_GT" / name
        place.mkdir(parents=True)
        for i in range(1, images + 1):
            height, width = rng.integers(61, 97, 2)
            lesions = [] if name == "normal" else [_lesion(rng, -0.4, name)]
            if name == "benign" and i % 5 == 0:
                lesions.append(_lesion(rng, 0.5, name))
            pixels = paint(rng, lesions, height, width, ground=110, noise=24)
            Image.fromarray(np.repeat(pixels, 3, axis=2)).save(place / f"{name} ({i}).png")
            masks = [lesion.mask(height, width) for lesion in lesions]
            for k, mask in enumerate(masks or [np.zeros((height, width), bool)]):
                end = f"_{k}" if k else ""
                image = Image.fromarray(mask)
                image = image.convert("RGB") if i % 7 == 0 else image
                image.save(place / f"{name} ({i})_mask{end}.png")


def _lesion(rng: np.random.Generator, x: float, name: str) -> Ellipse:
    """Place a dark lesion near `x`; malignant ones stand taller than wide."""
    wide, high = rng.uniform(0.2, 0.3), rng.uniform(0.2, 0.3)
    if name == "malignant":
        high += 0.2
    return Ellipse(x + rng.uniform(-0.1, 0.1), rng.uniform(-0.3, 0.3), wide, high, -75)
