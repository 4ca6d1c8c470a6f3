"""Draws a small raw SIIM-ACR set: radiographs in a folder tree and the runs of their masks."""

from pathlib import Path

import numpy as np

from fmi_jax import atomic
from fmi_jax.data.raw.drawn.dicom import write_dicom
from fmi_jax.data.raw.drawn.ellipses import Ellipse, chest, paint
from fmi_jax.data.raw.drawn.folder import draw_once

_SIDE = 1024  # pixels of a side of the masks; the drawn images are smaller


@draw_once(
    "Synthetic chest radiographs in the layout of SIIM-ACR: {count}, seed {seed}.\n", count=42
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` radiographs, a third of them with a pneumothorax, and one more without a row.

    As in the real set, some masks are in two rows, and the second column has a blank before its
    name.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count + 1):
        name = f"1.2.276.0.7230010.3.1.4.8323329.{rng.integers(10**6, 10**7)}.{i}"
        parts = chest(rng)
        found = [_pneumothorax(rng, side) for side in (-1, 1)[: i % 2 + 1]] if i % 3 == 0 else []
        height, width = rng.integers(61, 97, 2)
        pixels = paint(rng, [*parts.values(), *found], height, width, ground=160)
        path = folder / "dicom-images-train" / f"{name}.1" / f"{name}.2" / f"{name}.dcm"
        path.parent.mkdir(parents=True)
        write_dicom(path, pixels[..., 0], SOPInstanceUID=name, Modality="CR", PatientID=str(i))
        if i < count:
            texts = [_runs(ellipse.mask(_SIDE, _SIDE, block=8)) for ellipse in found] or [" -1"]
            rows += [(name, text) for text in texts]
    header = ("ImageId", " EncodedPixels")
    (folder / "train-rle.csv").write_bytes(atomic.csv_bytes([header, *rows]))


def _pneumothorax(rng: np.random.Generator, side: int) -> Ellipse:
    """Place dark air beside the lung on one side."""
    return Ellipse(
        side * rng.uniform(0.5, 0.6), rng.uniform(-0.4, -0.1), 0.2, rng.uniform(0.2, 0.4), -55
    )


def _runs(mask: np.ndarray) -> str:
    """Write a mask as runs down its columns, each counted from the end of the one before."""
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=False))
    return " ".join(map(str, np.diff(edges, prepend=0)))
