"""Draws a small raw PatchCamelyon: patches that look faintly like stained lymph node."""

from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fmi_jax import atomic
from fmi_jax.data.raw.drawn.folder import draw_once

_SIDE = 96
_SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}
_NOTE = """\
Synthetic histology patches: {count} images, seed {seed}.

Drawn by fmi_jax.data.raw.drawn.patch_camelyon in the raw layout of PatchCamelyon. They show no
tissue; a patch is positive if large pale nuclei are drawn in its centre.
For trying out and testing software only.
"""


@draw_once(_NOTE, count=60)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` patches of 96 x 96 pixels, their labels and slides, into `folder`.

    Raises:
      UserError: the folder holds something else.
    """
    rng = np.random.default_rng(seed)
    for part, share in _SHARES.items():
        _write_part(rng, folder, part, round(count * share))


def _write_part(rng: np.random.Generator, folder: Path, part: str, count: int) -> None:
    stem = folder / f"camelyonpatch_level_2_split_{part}"
    labels = rng.permutation(np.arange(count, dtype=np.uint8) % 2)
    images = np.stack([_patch(rng, bool(label)) for label in labels])
    for name, values in (("x", images), ("y", labels.reshape(-1, 1, 1, 1))):
        with h5py.File(f"{stem}_{name}.h5", "w") as file:
            file.create_dataset(name, data=values, compression="gzip")
    slide = f"camelyon16_{'test' if part == 'test' else 'train'}_{part}"
    header = ("", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi")
    rows = (
        (i, *rng.integers(0, 2**17, 2), positive, positive, f"{slide}_{i % 7:03}")
        for i, positive in enumerate(labels.astype(bool))
    )
    Path(f"{stem}_meta.csv").write_bytes(atomic.csv_bytes([header, *rows], end="\r\n"))


def _patch(rng: np.random.Generator, positive: bool) -> np.ndarray:
    """Draw small dark nuclei on pink stroma; a positive patch has large pale ones in the middle."""
    canvas = Image.new("RGB", (_SIDE, _SIDE), (225, 170, 205))
    pen = ImageDraw.Draw(canvas)

    def nucleus(centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
        pen.ellipse((*(centre - radius), *(centre + radius)), fill=colour)

    for centre in rng.uniform(0, _SIDE, (70, 2)):
        nucleus(centre, rng.uniform(2, 4), (95, 60, 140))
    if positive:
        for centre in rng.normal(_SIDE / 2, 12, (9, 2)):
            nucleus(centre, rng.uniform(5, 8), (150, 105, 175))
    stained = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.8))) + rng.normal(0, 6, (3,))
    return np.clip(stained + rng.normal(0, 5, stained.shape), 0, 255).astype(np.uint8)
