"""ChestX-ray14: frontal chest radiographs with fourteen findings."""

import collections
import dataclasses
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path

from fmi_jax.data.boxes import Box
from fmi_jax.data.raw import splits
from fmi_jax.data.raw.drawn.chestxray14 import draw
from fmi_jax.data.raw.labels import encode_class_lists
from fmi_jax.data.raw.problems import SHOWN, Problems
from fmi_jax.data.raw.spec import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.split_lists import read_split_lists
from fmi_jax.data.raw.table import read_table
from fmi_jax.errors import UsageError

CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""Findings in the order of the third study, named as in the table."""

NO_FINDING = "No Finding"

_COLUMNS = {"Patient Age": "age", "Patient Gender": "sex", "View Position": "view"}

BOXES = "BBox_List_2017.csv"
"""Boxes around findings in some test images; `prepare --boxes` reads them."""

_SIDES = ("Bbox [x", "y", "w", "h]")  # as published: the header has a comma between the four
_BOX_SIZE = 1024  # pixels of a side of the images that the boxes were drawn in
_IN_BOXES = {"Infiltrate": "Infiltration"}  # findings under another name

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
OFFICIAL_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
BENCHMARK_LISTS = {name: f"Xray14_{name}_official.txt" for name in ("train", "val", "test")}
"""Lists of the third study. Its licence forbids passing them on: the user adds the files."""


def read(source: Path) -> RawDataset:
    """Read the table, the lists of the splits, and the folder of each image.

    `RawExample.split` comes from the benchmark's lists if they are there; else it is "train" for
    the official train_val list and "test" for the test list. All labels come from the table.

    Raises:
      UserError: the table is missing or malformed, a finding is unknown, a list names an image
        that the table does not have, or the lists disagree on the test images.
    """
    tables = [source / name for name in TABLES]
    table = next(filter(Path.is_file, tables), tables[-1])
    _, rows = read_table(table, required=("Image Index", "Finding Labels", "Patient ID"))
    problems = Problems(table)
    places = [f"row {row.line} ({row.fields['Image Index']!r})" for row in rows]
    findings = [row.fields["Finding Labels"] for row in rows]
    problems.add(
        f"Finding Labels is empty, expected {NO_FINDING!r} or findings",
        *(place for found, place in zip(findings, places, strict=True) if not found),
    )
    labels, classes, form = encode_class_lists(
        ["" if found == NO_FINDING else found for found in findings], places, CLASSES, problems
    )
    images = [row.fields["Image Index"] for row in rows]
    nih = read_split_lists(source, OFFICIAL_LISTS, images)
    split_of = read_split_lists(source, BENCHMARK_LISTS, images) or nih
    for row, image, place in zip(rows, images, places, strict=True):
        if not row.fields["Patient ID"]:
            problems.add("Patient ID is empty", place)
        if nih and (nih.get(image) == "test") != (split_of.get(image) == "test"):
            problems.add(f"{OFFICIAL_LISTS['test']} and {BENCHMARK_LISTS['test']} disagree", place)
    problems.raise_if_any()
    paths = _image_paths(source)
    return RawDataset(
        table=table,
        image_root=source,
        examples=[
            RawExample(
                id=image,
                path=paths.get(image, f"images/{image}"),
                label=label,
                group=row.fields["Patient ID"],
                split=split_of.get(image),
                row=row.line,
                columns=row.kept(_COLUMNS),
            )
            for row, image, label in zip(rows, images, labels, strict=True)
        ],
        classes=classes,
        label=form,
    )


def read_boxes(source: Path) -> RawDataset:
    """Same as `read`, with the boxes of `BBox_List_2017.csv`.

    Raises:
      UserError: see `read`; or a box is of no image or finding, is no box, or is outside its image.
    """
    raw, table = read(source), source / BOXES
    _, rows = read_table(table, required=("Image Index", "Finding Label", *_SIDES))
    problems, known = Problems(table), {example.id for example in raw.examples}
    boxes = collections.defaultdict(list)
    for row in rows:
        image, name = row.fields["Image Index"], row.fields["Finding Label"]
        where, name = f"row {row.line} ({image!r})", _IN_BOXES.get(name, name)
        box = _box(name, [row.fields[side] for side in _SIDES])
        if image not in known:
            problems.add(f"image is not in {raw.table.name}", where)
        elif name not in CLASSES:
            problems.add("finding is outside the classes", f"{where}: {name!r}")
        elif box is None:
            problems.add(f"not a box inside {_BOX_SIZE} x {_BOX_SIZE} pixels", where)
        else:
            boxes[image].append(box)
    problems.raise_if_any()
    examples = [dataclasses.replace(e, boxes=tuple(boxes.get(e.id, ()))) for e in raw.examples]
    return dataclasses.replace(raw, examples=examples)


def _box(name: str, fields: Sequence[str]) -> Box | None:
    try:
        left, top, width, height = (float(field) / _BOX_SIZE for field in fields)
    except ValueError:
        return None
    finite = all(map(math.isfinite, (left, top, width, height)))
    inside = -width < left < 1 and -height < top < 1
    return (
        Box(name, left, top, width, height)
        if finite and inside and min(width, height) > 0
        else None
    )


def official(examples: Sequence[RawExample]) -> splits.Assignment:
    """Split with the official test list; an eighth of the train_val list's patients is validation.

    Patients are sorted by their id as text and shuffled by `random.Random(SEED)`; the first
    eighth is validation, which gives about the 70/10/20 of the data set's paper.

    Raises:
      UsageError: a row is in none of the lists.
    """
    if without := [example.where for example in examples if not example.split]:
        raise UsageError(
            f"the split 'official' needs every row in one of {', '.join(OFFICIAL_LISTS.values())};"
            f" {len(without)} are in none: {', '.join(without[:SHOWN])}."
        )
    patients = sorted({str(e.group) for e in examples if e.split != "test"})
    random.Random(splits.SEED).shuffle(patients)
    val = set(patients[: len(patients) // 8])
    rows: splits.Assignment = {"train": [], "val": [], "test": []}
    for i, example in enumerate(examples):
        if example.split == "test":
            rows["test"].append(i)
        else:
            rows["val" if str(example.group) in val else "train"].append(i)
    return rows


def upstream(examples: Sequence[RawExample]) -> splits.Assignment:
    """Split by the third study's own lists; no patient is in two of train, validation and test.

    Raises:
      UsageError: the lists are not there.
    """
    if not any(example.split == "val" for example in examples):
        raise UsageError(
            f"the split 'upstream' needs {', '.join(BENCHMARK_LISTS.values())} beside the table;"
            " they come with the code of the benchmark. 'official' has the same test images."
        )
    return splits.official(examples)


def _image_paths(source: Path) -> dict[str, str]:
    """Path of each image: in `images/`, or in one of `images_001/images/` to 012."""
    parts = [f"{folder.parent.name}/images" for folder in sorted(source.glob("images_*/images"))]
    return {
        entry.name: f"{folder}/{entry.name}"
        for folder in ("images", *parts)
        if (source / folder).is_dir()
        for entry in os.scandir(source / folder)
    }


CHESTXRAY14 = DatasetSpec(
    name="chestxray14",
    read=read,
    # The benchmark feeds its networks RGB with the statistics of ImageNet; this is the same.
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="roc_auc",
    splits={
        "official": official,
        "grouped": splits.grouped,
        "stratified": splits.stratified,
        "upstream": upstream,
    },
    layout="a folder with Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv), train_val_list.txt,"
    " test_list.txt and images/ or images_001/images/ to images_012/images/; with --boxes also"
    f" {BOXES}",
    citation="Wang et al., ChestX-ray8: Hospital-Scale Chest X-ray Database and Benchmarks, 2017",
    licence="free to use; acknowledge the NIH Clinical Center",
    url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    sizes={"upstream": (75_312, 11_212, 25_596)},
    draw=draw,
    read_boxes=read_boxes,
)
