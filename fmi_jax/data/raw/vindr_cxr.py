"""VinDr-CXR: chest radiographs with the diagnoses of several radiologists (Nguyen et al. 2022)."""

import os
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.vindr_cxr import draw
from fmi_jax.data.raw.labels import encode_columns
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    RawDataset,
    RawExample,
)
from fmi_jax.data.raw.splits import official_test, stratified
from fmi_jax.data.raw.table import read_table

CLASSES = (
    "Pleural effusion",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
"""Labels of the third study, in its order; the tables have 22 more."""

_OTHER_SPELLING = {"Other diseases": "Other disease"}  # in the published test table


def read(source: Path) -> RawDataset:
    """Read `[annotations/]image_labels_{train,test}.csv`; the images are `<part>/<image_id>.dicom`.

    An image has a label if more than half of its readers gave it: two of three in the training
    table. The test table has one row for each image, the consensus of five readers. The split is
    "train" or "test", by the table. Image files of another format are read as well.

    Raises:
      UserError: a table is missing or malformed, a label is not a number from 0 to 1, or a reader
        has two rows for an image.
    """
    folder = source / "annotations"
    folder = folder if folder.is_dir() else source
    examples = []
    for split in ("train", "test"):
        files = _files(source / split)
        for image, (line, votes) in _read_votes(folder / f"image_labels_{split}.csv").items():
            label = tuple(float(2 * sum(given) > len(given)) for given in zip(*votes, strict=True))
            path = f"{split}/{files.get(image, f'{image}.dicom')}"
            examples.append(RawExample(id=image, path=path, label=label, split=split, row=line))
    return RawDataset(
        table=folder / "image_labels_train.csv",
        image_root=source,
        examples=examples,
        classes=CLASSES,
        label=Label.VECTOR,
    )


def _read_votes(table: Path) -> dict[str, tuple[int, list[tuple[float, ...]]]]:
    """Read the line of the first row of each image, and the labels of each of its readers."""
    columns, _ = read_table(table, required=("image_id",))
    named = [_OTHER_SPELLING.get(name, name) for name in CLASSES]
    named = [new if new in columns else name for new, name in zip(named, CLASSES, strict=True)]
    _, rows = read_table(table, required=("image_id", *named))
    problems = Problems(table)
    labels, _, _ = encode_columns(rows, named, problems)
    votes: dict[str, tuple[int, list[tuple[float, ...]]]] = {}
    readers: set[tuple[str, str]] = set()
    for row, given in zip(rows, labels, strict=True):
        image, reader = row.fields["image_id"], row.fields.get("rad_id", "")
        if (image, reader) in readers:
            problems.add("second row of a reader for an image", f"row {row.line} ({image!r})")
        readers.add((image, reader))
        votes.setdefault(image, (row.line, []))[1].append(given)
    problems.raise_if_any()
    return votes


def _files(folder: Path) -> dict[str, str]:
    """File names in a folder, by the name without the suffix."""
    if not folder.is_dir():
        return {}
    return {Path(entry.name).stem: entry.name for entry in os.scandir(folder)}


VINDR_CXR = DatasetSpec(
    name="vindr_cxr",
    read=read,
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="roc_auc",
    splits={"official": official_test, "stratified": stratified},
    layout="a folder with annotations/image_labels_train.csv and annotations/image_labels_test.csv,"
    " train/<image_id>.dicom and test/<image_id>.dicom",
    citation="Nguyen et al., VinDr-CXR: an open dataset of chest X-rays with radiologist's"
    " annotations, Scientific Data 9, 2022",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    url="https://physionet.org/content/vindr-cxr/1.0.0/",
    draw=draw,
)
