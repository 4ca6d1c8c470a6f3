"""ISIC 2019: dermoscopic photographs of eight kinds of skin lesion."""

import functools
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.isic2019 import draw
from fmi_jax.data.raw.labels import encode_columns
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import grouped, stratified, upstream
from fmi_jax.data.raw.table import TableRow, read_table

CODES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""Columns of the table, in the order of `CLASSES`. Its ninth, UNK, is 0 in all public rows."""

CLASSES = (
    "Melanoma",
    "Melanocytic nevus",
    "Basal cell carcinoma",
    "Actinic keratosis",
    "Benign keratosis",
    "Dermatofibroma",
    "Vascular lesion",
    "Squamous cell carcinoma",
)

_COLUMNS = {"age_approx": "age", "anatom_site_general": "site", "sex": "sex"}

_FOLDERS = (
    "ISIC_2019_Training_Input/ISIC_2019_Training_Input",  # nested in the Kaggle mirror
    "ISIC_2019_Training_Input",  # archive of the challenge
    "train",  # folder of the study
)


def read(source: Path) -> RawDataset:
    """Read `ISIC_2019_Training_GroundTruth.csv`, and lesion, age, sex and site from the metadata.

    An image whose lesion is not known is a group of its own. Without the metadata there are no
    groups.

    Raises:
      UserError: a table is missing or malformed, or a row does not have exactly one class.
    """
    table = source / "ISIC_2019_Training_GroundTruth.csv"
    _, rows = read_table(table, required=("image", *CODES, "UNK"))
    problems = Problems(table)
    marks, _, _ = encode_columns(rows, (*CODES, "UNK"), problems)
    problems.raise_if_any()
    for row, mark in zip(rows, marks, strict=True):
        place = f"row {row.line} ({row.fields['image']!r})"
        if sorted(mark) != [0.0] * len(CODES) + [1.0]:
            found = "|".join(f"{value:g}" for value in mark)
            problems.add(f"not one 1 and else 0 in {'|'.join(CODES)}|UNK", f"{place}: {found}")
        elif mark[-1]:
            problems.add("class UNK, which is not among the eight; remove the row", place)
    problems.raise_if_any()
    images = [row.fields["image"] for row in rows]
    metadata = _metadata(source / "ISIC_2019_Training_Metadata.csv", images)
    folders = [source / folder for folder in _FOLDERS]
    return RawDataset(
        table=table,
        image_root=next(filter(Path.is_dir, folders), source / "ISIC_2019_Training_Input"),
        examples=[
            RawExample(
                id=image,
                path=f"{image}.jpg",
                label=mark.index(1.0),
                group=None if about is None else about.fields["lesion_id"] or image,
                row=row.line,
                columns={} if about is None else about.kept(_COLUMNS),
            )
            for row, image, mark in zip(rows, images, marks, strict=True)
            for about in [metadata.get(image)]
        ],
        classes=CLASSES,
        label=Label.INDEX,
    )


def _metadata(table: Path, images: list[str]) -> dict[str, TableRow]:
    """Row of each image in the metadata; empty without the table."""
    if not table.is_file():
        return {}
    _, rows = read_table(table, required=("image", "lesion_id"))
    problems = Problems(table)
    found: dict[str, TableRow] = {}
    for row in rows:
        image = row.fields["image"]
        if image in found:
            problems.add("image is listed more than once", f"row {row.line} ({image!r})")
        found[image] = row
    unlisted = (repr(image) for image in images if image not in found)
    problems.add("no row for an image of the ground truth", *unlisted)
    problems.raise_if_any("Without this table, the split 'grouped' cannot be had; all others can.")
    return found


ISIC2019 = DatasetSpec(
    name="isic2019",
    read=read,
    channels=3,
    mean=(0.66776717, 0.52960888, 0.52434725),
    std=(0.22381877, 0.20363036, 0.21538623),
    metric="recall",
    splits={
        "grouped": grouped,
        "upstream": functools.partial(upstream, held_out=0.2),
        "stratified": stratified,
    },
    layout="a folder with ISIC_2019_Training_GroundTruth.csv, ISIC_2019_Training_Metadata.csv and"
    " ISIC_2019_Training_Input/<image>.jpg (or train/<image>.jpg)",
    citation="ISIC 2019 challenge: HAM10000 (Tschandl et al., 2018), BCN_20000 (Combalia et al.,"
    " 2019), MSK (Codella et al., 2018)",
    licence="CC BY-NC 4.0",
    url="https://challenge.isic-archive.com/data/#2019",
    sizes={"upstream": (20_265, 2_533, 2_533)},
    draw=draw,
)
