"""Draws a small raw VinDr-CXR: radiographs, and tables of what radiologists found in them."""

from pathlib import Path

import numpy as np

from fmi_jax import atomic
from fmi_jax.data.raw.drawn.chest import radiograph
from fmi_jax.data.raw.drawn.dicom import write_dicom
from fmi_jax.data.raw.drawn.folder import draw_once

_DISEASES = ("Pleural effusion", "Lung tumor", "Pneumonia", "Tuberculosis")


@draw_once(
    "Synthetic chest radiographs in the layout of VinDr-CXR: {count}, seed {seed}.\n", count=48
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` radiographs, a third of them for the test.

    As in the real set, three readers label each training image and do not always agree, and one
    column of the two tables differs by a letter.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    (folder / "annotations").mkdir()
    for part, images, readers in (("train", count - count // 3, 3), ("test", count // 3, 1)):
        (folder / part).mkdir()
        other = "Other diseases" if part == "train" else "Other disease"
        reader_column = ("rad_id",) if part == "train" else ()
        rows: list[tuple[object, ...]] = [
            ("image_id", *reader_column, "Edema", *_DISEASES, other, "No finding")
        ]
        for _ in range(images):
            image = rng.bytes(16).hex()
            found = rng.random(5) < rng.choice((0.0, 0.4))
            path = folder / part / f"{image}.dicom"
            write_dicom(path, radiograph(rng, found), SOPInstanceUID="1.2", Modality="DX")
            for reader in range(readers):
                # The last reader now and then sees something else than the others.
                seen = found ^ (rng.random(5) < (0.2 if reader == 2 else 0.0))
                name = (f"R{reader + 1}",) if part == "train" else ()
                rows.append((image, *name, 0, *seen.astype(int), int(not seen.any())))
        table = folder / "annotations" / f"image_labels_{part}.csv"
        table.write_bytes(atomic.csv_bytes(rows))
