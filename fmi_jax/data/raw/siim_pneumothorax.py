"""SIIM-ACR Pneumothorax: chest radiographs with masks of the pneumothorax, written as runs."""

import os
import re
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.siim_pneumothorax import draw
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    RawDataset,
    RawExample,
)
from fmi_jax.data.raw.splits import stratified
from fmi_jax.data.raw.table import read_table
from fmi_jax.errors import UserError

CLASSES = ("background", "pneumothorax")

TABLES = ("train-rle.csv", "stage_2_train.csv")

_NONE = "-1"  # in place of the runs of an image without a pneumothorax
_MASK_SIZE = (1024, 1024)  # pixels that the runs count, which are those of the images

_Runs = tuple[tuple[int, int], ...]


def read(source: Path) -> RawDataset:
    """Read the table and find the DICOM file `<ImageId>.dcm` of each image in the folders.

    An image has a row for each of its masks, which are united, or one that says that it has none.
    Images without a row were not annotated and are left out. The id is the ImageId.

    Raises:
      UserError: the table is missing or malformed, runs are no runs or leave the image, an image is
        said to have a mask and none, or two files have the name of one image.
    """
    tables = [source / name for name in TABLES]
    table = next(filter(Path.is_file, tables), tables[0])
    _, rows = read_table(table, required=("ImageId", "EncodedPixels"))
    problems = Problems(table)
    found: dict[str, list[_Runs]] = {}
    first: dict[str, int] = {}
    for row in rows:
        image, text = row.fields["ImageId"], row.fields["EncodedPixels"]
        runs = () if text == _NONE else _decode(text)
        if runs is None:
            problems.add(
                f"not pairs of gap and length that stay inside {_MASK_SIZE[0]} x {_MASK_SIZE[1]}"
                f" pixels, and not {_NONE}",
                f"row {row.line} ({image!r}): {text[:30]!r}",
            )
        elif found.get(image) and (runs == () or () in found[image]):
            problems.add("both without and with a mask, or twice without", f"{image!r}")
        found.setdefault(image, []).append(runs or ())
        first.setdefault(image, row.line)
    files = _find_files(source, problems)
    problems.raise_if_any()
    return RawDataset(
        table=table,
        image_root=source,
        examples=[
            RawExample(
                id=image,
                path=files.get(image, f"{image}.dcm"),
                label=int(any(masks)),
                row=first[image],
                runs=tuple(run for runs in masks for run in runs),
                mask_size=_MASK_SIZE,
            )
            for image, masks in found.items()
        ],
        classes=CLASSES,
        label=Label.MAP,
    )


def _decode(text: str) -> _Runs | None:
    """Runs of a mask from its text, in which each start counts from the end of the run before."""
    if not re.fullmatch(r"\d+ \d+( \d+ \d+)*", text):
        return None
    numbers = [int(number) for number in text.split()]
    runs, position = [], 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        runs.append((position + gap, length))
        position += gap + length
    return tuple(runs) if position <= _MASK_SIZE[0] * _MASK_SIZE[1] else None


def _find_files(source: Path, problems: Problems) -> dict[str, str]:
    """Path of each DICOM file, relative to `source`, by its name without the suffix."""
    files: dict[str, str] = {}
    for folder, _, names in sorted(os.walk(source)):
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() != ".dcm":
                continue
            path = (Path(folder).relative_to(source) / name).as_posix()
            if stem in files:
                problems.add("two files of one image", f"{files[stem]} and {path}")
            files[stem] = path
    if not files:
        raise UserError(f"{source} has no DICOM files; expected {LAYOUT}.")
    return files


LAYOUT = (
    "a folder with train-rle.csv (or stage_2_train.csv; ImageId,EncodedPixels) and the DICOM files"
    " <ImageId>.dcm in folders of any depth (dicom-images-train/...)"
)

SIIM_PNEUMOTHORAX = DatasetSpec(
    name="siim_pneumothorax",
    read=read,
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="dice",
    splits={"stratified": stratified},
    layout=LAYOUT,
    citation="SIIM-ACR Pneumothorax Segmentation, 2019; Filice et al., Crowdsourcing pneumothorax"
    " annotations using machine learning annotations on the NIH chest X-ray dataset, Journal of"
    " Digital Imaging 33, 2020",
    licence="rules of the Kaggle competition; the images are the NIH Clinical Center's",
    url="https://www.kaggle.com/competitions/siim-acr-pneumothorax-segmentation",
    sizes={"stratified": (7_490, 1_605, 1_605)},
    draw=draw,
    notes={
        "stratified": "The images are from ChestX-ray14 without their patients' numbers: images of"
        " one patient may be in training and in test, and in a backbone's ChestX-ray14."
    },
)
