"""ISIC 2018 task 1: dermoscopic photographs with the boundary of the lesion."""

import dataclasses
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.isic2018_lesions import draw
from fmi_jax.data.raw.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    RawDataset,
    RawExample,
)
from fmi_jax.data.raw.splits import official_test, stratified
from fmi_jax.errors import UserError

CLASSES = ("background", "lesion")

_PARTS = {"Training": "train", "Validation": "val", "Test": "test"}


def read(source: Path) -> RawDataset:
    """List `ISIC2018_Task1-2_<part>_Input/<image>.jpg` and the mask of each image.

    The parts are Training, Validation and Test; those without a folder of masks are left out. The
    split of an image is its part, if there is a Test part. The id is the file name without suffix.

    Raises:
      UserError: there are no training images or no folder of their masks.
    """
    examples, parts = [], []
    for part, split in _PARTS.items():
        images = f"ISIC2018_Task1-2_{part}_Input"
        masks = f"ISIC2018_Task1_{part}_GroundTruth"
        if not (source / images).is_dir() or not (source / masks).is_dir():
            continue
        parts.append(part)
        examples += [
            RawExample(
                id=name,
                path=f"{images}/{name}.jpg",
                label=1,
                split=split,
                masks=(f"{masks}/{name}_segmentation.png",),
            )
            for name in sorted(path.stem for path in (source / images).glob("*.jpg"))
        ]
    if not any(example.split == "train" for example in examples):
        raise UserError(f"{source} has no training images with masks; expected {LAYOUT}.")
    if "Test" not in parts:
        examples = [dataclasses.replace(example, split=None) for example in examples]
    return RawDataset(
        table=source, image_root=source, examples=examples, classes=CLASSES, label=Label.MAP
    )


LAYOUT = (
    "a folder with ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg and"
    " ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png and, if you like, the same"
    " two folders for Validation and Test"
)

ISIC2018_LESIONS = DatasetSpec(
    name="isic2018_lesions",
    read=read,
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="dice",
    splits={"official": official_test, "stratified": stratified},
    layout=LAYOUT,
    citation="Codella et al., Skin lesion analysis toward melanoma detection 2018: a challenge"
    " hosted by the International Skin Imaging Collaboration, arXiv:1902.03368; Tschandl et al.,"
    " The HAM10000 dataset, Scientific Data 5, 2018",
    licence="the LICENSE.txt in each folder of the download",
    url="https://challenge.isic-archive.com/data/#2018",
    draw=draw,
)
