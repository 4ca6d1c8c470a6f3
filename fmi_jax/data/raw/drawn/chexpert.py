"""Draws a small raw CheXpert: `train.csv`, `valid.csv` and the radiographs of their studies."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax import atomic
from fmi_jax.data.raw.drawn.chest import radiograph
from fmi_jax.data.raw.drawn.folder import draw_once

_NOTE = """\
Synthetic chest radiographs: {count} images, seed {seed}.

Drawn by fmi_jax.data.raw.drawn.chexpert in the raw layout of CheXpert-v1.0-small. They show no
patient; every finding is a pale spot at a place of its own.
For trying out and testing software only.
"""

_FINDINGS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
_HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *_FINDINGS)


@draw_once(_NOTE, count=60)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write about `count` radiographs, a sixth of them for `valid.csv`.

    Lateral views are drawn like frontal ones.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    held_out = count // 6
    _write_part(rng, folder, "train", count - held_out, first_patient=1)
    _write_part(rng, folder, "valid", held_out, first_patient=64541)


def _write_part(
    rng: np.random.Generator, folder: Path, part: str, count: int, first_patient: int
) -> None:
    rows: list[tuple[str, ...]] = []
    patient = first_patient
    while len(rows) < count:
        # The newer study comes first, as happens in the real table, whose order is not by path.
        for study in range(int(rng.integers(1, 3)), 0, -1):
            found = rng.random(len(_FINDINGS)) < rng.choice((0.0, 0.2, 0.4))
            labels = _written(rng, found, certain=part == "valid")
            sex, age = str(rng.choice(("Female", "Male"))), str(rng.integers(18, 91))
            for view in range(1, int(rng.integers(1, 3)) + 1):
                side, beam = (("Frontal", "AP"), ("Lateral", ""))[view - 1]
                path = f"{part}/patient{patient:05}/study{study}/view{view}_{side.lower()}.jpg"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(radiograph(rng, np.append(0, found))).save(
                    folder / path, quality=90
                )
                rows.append((f"CheXpert-v1.0-small/{path}", sex, age, side, beam, *labels))
        patient += 1
    (folder / f"{part}.csv").write_bytes(atomic.csv_bytes([_HEADER, *rows]))


def _written(rng: np.random.Generator, found: np.ndarray, *, certain: bool) -> list[str]:
    """Write the fourteen labels: `certain` as radiologists give them, or as read from reports.

    A report does not mention most absent findings, is now and then uncertain, and says "No
    Finding" for only some of the images without any.
    """
    if certain:
        return [f"{float(value):.1f}" for value in (not found.any(), *found)]
    chance = rng.random(len(found))
    positive = np.where(chance < 0.2, "-1.0", "1.0")
    negative = np.where(chance < 0.03, "-1.0", np.where(chance < 0.3, "0.0", ""))
    none = "1.0" if not found.any() and rng.random() < 0.7 else ""
    return [none, *np.where(found, positive, negative).tolist()]
