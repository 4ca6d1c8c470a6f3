"""Draws a small raw ChestX-ray14: `Data_Entry_2017.csv`, two lists, boxes, two image folders."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax import atomic
from fmi_jax.data.raw.drawn.chest import radiograph, spot_box
from fmi_jax.data.raw.drawn.folder import draw_once

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)

BOX_HEADER = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")

HEADER = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
    *("Patient Gender", "View Position", "OriginalImage[Width", "Height]"),
    *("OriginalImagePixelSpacing[x", "y]", ""),  # as published, commas and all
)


@draw_once(
    "Synthetic chest radiographs in the layout of ChestX-ray14: {count}, seed {seed}.\n",
    count=56,
)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` radiographs of about `count / 2` patients, with none or up to three findings.

    As in the real set, some PNGs have an alpha channel, and no patient is in both lists.

    Raises:
      UserError: `folder` holds something else.
    """
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(1, count // 2 + 1, count))
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    boxes = []
    for i, patient in enumerate(patients.tolist()):
        follow_up = i - int(np.searchsorted(patients, patient))
        name = f"{patient:08}_{follow_up:03}.png"
        found = np.zeros(len(FINDINGS), int)
        if rng.random() < 0.75:
            found[rng.choice(len(FINDINGS), rng.integers(1, 4), replace=False)] = 1
        grey = Image.fromarray(radiograph(rng, found))
        images = folder / ("images_001" if i < count // 2 else "images_002") / "images"
        images.mkdir(parents=True, exist_ok=True)
        (grey.convert("RGBA") if i % 11 == 7 else grey).save(images / name)
        labels = "|".join(np.array(FINDINGS)[found == 1]) or "No Finding"
        age, sex, view = rng.integers(20, 90), rng.choice(["M", "F"]), rng.choice(["PA", "AP"])
        size = (grey.width, grey.height, 0.143, 0.143)
        rows.append((name, labels, follow_up, patient, age, sex, view, *size, ""))
        if patient % 4 == 0 and found.any():  # as in the real set, of few images, in the test list
            first = int(found.argmax())
            box = (1024 * share for share in spot_box(first, len(FINDINGS)))
            name_in_boxes = FINDINGS[first].replace("Infiltration", "Infiltrate")
            boxes.append((name, name_in_boxes, *(f"{side:.7f}" for side in box), "", "", ""))
        lists["test_list.txt" if patient % 4 == 0 else "train_val_list.txt"].append(name)
    (folder / "Data_Entry_2017.csv").write_bytes(atomic.csv_bytes([HEADER, *rows]))
    (folder / "BBox_List_2017.csv").write_bytes(atomic.csv_bytes([BOX_HEADER, *boxes]))
    for list_name, names in lists.items():
        (folder / list_name).write_text("\n".join(names) + "\n")
