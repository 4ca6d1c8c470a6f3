"""Draws a small raw Shenzhen set: `ChinaSet_AllFiles/CXR_png` and the clinical readings."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.data.raw.drawn.chest import radiograph
from fmi_jax.data.raw.drawn.folder import draw_once


@draw_once(
    "Synthetic chest radiographs in the layout of the Shenzhen set: {count}, seed {seed}.\n",
    count=42,
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` radiographs, the first half normal, the others with tuberculosis.

    As in the real set, they are colour PNGs of grey pixels, and one file beside them is not an
    image.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    folder = folder / "ChinaSet_AllFiles"
    for name in ("CXR_png", "ClinicalReadings"):
        (folder / name).mkdir(parents=True)
    (folder / "CXR_png" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    for i in range(count):
        sick = int(i >= count // 2)
        name = f"CHNCXR_{i + 1:04}_{sick}"
        # Infiltrates can be anywhere: three of six places in one class, none in the other.
        spots = rng.permutation([1, 1, 1, 0, 0, 0]) * sick
        grey = Image.fromarray(radiograph(rng, spots, strength=45))
        grey.convert("RGB").save(folder / "CXR_png" / f"{name}.png")
        reading = f"male {rng.integers(18, 80)}yrs\n{'PTB' if sick else 'normal'}\n"
        (folder / "ClinicalReadings" / f"{name}.txt").write_text(reading)
