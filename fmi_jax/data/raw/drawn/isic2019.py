"""Draws a small raw ISIC 2019: dermoscopic photographs, the ground truth and the metadata."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmi_jax import atomic
from fmi_jax.data.raw.drawn.folder import draw_once

CODES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")

_TINTS = np.array(
    [
        (0.35, 0.28, 0.26),
        (0.62, 0.42, 0.34),
        (0.95, 0.80, 0.82),
        (1.00, 0.70, 0.62),
        (0.72, 0.60, 0.42),
        (0.85, 0.55, 0.60),
        (0.75, 0.22, 0.32),
        (0.95, 0.62, 0.45),
    ]
)
"""Colour of the lesion of each class, relative to the skin around it."""


@draw_once(
    "Synthetic dermoscopic photographs in the layout of ISIC 2019: {count}, seed {seed}.\n",
    count=56,
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` photographs; classes differ in the colour and the outline of the lesion.

    As in the real set, some lesions are photographed twice, some have no id, and some names end in
    `_downsampled`.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    images = folder / "ISIC_2019_Training_Input"
    images.mkdir()
    lesions = rng.permutation(np.arange(count) * 3 // 4)  # every third one is photographed twice
    truth, metadata = [], []
    for i, lesion in enumerate(lesions.tolist()):
        name = f"ISIC_{i * 7:07}" + ("_downsampled" if i % 9 == 4 else "")
        label = lesion % len(CODES)
        Image.fromarray(_photograph(rng, label)).save(images / f"{name}.jpg", quality=90)
        truth.append((name, *(float(k == label) for k in range(len(CODES) + 1))))
        lesion_id = "" if lesion % 10 == 3 else f"HAM_{lesion:07}"
        metadata.append((name, f"{rng.integers(4, 17) * 5}.0", "back", lesion_id, "female"))
    for table, header, rows in (
        ("GroundTruth", ("image", *CODES, "UNK"), truth),
        ("Metadata", ("image", "age_approx", "anatom_site_general", "lesion_id", "sex"), metadata),
    ):
        (folder / f"ISIC_2019_Training_{table}.csv").write_bytes(atomic.csv_bytes([header, *rows]))


def _photograph(rng: np.random.Generator, label: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width = rng.integers(61, 91, 2)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    x = (x - rng.uniform(-0.25, 0.25)) / rng.uniform(0.4, 0.7)
    y = (y - rng.uniform(-0.25, 0.25)) / rng.uniform(0.4, 0.7)
    angle = np.arctan2(y, x) + rng.uniform(0, 6.3)
    ragged = 0.05 + 0.25 * (label % 2)
    outline = 1 + ragged * np.cos(3 * angle) * np.cos(5 * angle)
    cover = np.clip((outline - np.hypot(x, y)) / 0.15, 0, 1) * rng.uniform(0.7, 1.0)
    skin = np.array((0.86, 0.66, 0.60)) * rng.normal(1, (0.06, 0.04, 0.04))
    pixels = skin * (1 + cover[..., None] * (_TINTS[label] * rng.normal(1, 0.08, 3) - 1))
    pixels += rng.normal(0, 0.03, pixels.shape)
    return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
