"""BUSI: breast ultrasound images with the outlines of their lesions (Al-Dhabyani et al. 2020)."""

import collections
import re
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.busi import draw
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    RawDataset,
    RawExample,
)
from fmi_jax.data.raw.splits import stratified
from fmi_jax.errors import UserError

CLASSES = ("background", "lesion")

FOLDERS = ("benign", "malignant", "normal")
"""Folders of the images, which are the column `class`."""

_NAME = re.compile(r"(.+ \(\d+\))(_mask(?:_\d+)?)?\.png")


def read(source: Path) -> RawDataset:
    """List `[Dataset_BUSI_with_GT/]<class>/<class> (<number>).png` and the masks of each image.

    The masks `<image>_mask.png`, `<image>_mask_1.png` and so on of one image are united. The id is
    the name without the suffix.

    Raises:
      UserError: a folder is missing, a file has another kind of name, or a mask lacks its image.
    """
    root = source / "Dataset_BUSI_with_GT"
    root = root if root.is_dir() else source
    problems = Problems(root)
    examples = []
    for folder in FOLDERS:
        if not (root / folder).is_dir():
            raise UserError(f"{root} has no folder {folder}; expected {LAYOUT}.")
        names = sorted(path.name for path in (root / folder).glob("*.png"))
        images, masks = [], collections.defaultdict(list)
        for name in names:
            match = _NAME.fullmatch(name)
            if not match or not name.startswith(f"{folder} ("):
                problems.add("not named '<class> (<number>)[_mask].png'", f"{folder}/{name}")
            elif match[2]:
                masks[match[1]].append(f"{folder}/{name}")
            else:
                images.append(match[1])
        lone = sorted(set(masks) - set(images))
        problems.add("mask without its image", *(masks[image][0] for image in lone))
        examples += [
            RawExample(
                id=image,
                path=f"{folder}/{image}.png",
                label=int(folder != "normal"),
                masks=tuple(masks[image] or [f"{folder}/{image}_mask.png"]),
                columns={"class": folder},
            )
            for image in images
        ]
    problems.raise_if_any()
    if not examples:
        raise UserError(f"{root} holds no image; expected {LAYOUT}.")
    return RawDataset(
        table=source, image_root=root, examples=examples, classes=CLASSES, label=Label.MAP
    )


LAYOUT = (
    "a folder with Dataset_BUSI_with_GT/{benign,malignant,normal}/, each with benign (1).png,"
    " benign (1)_mask.png and so on"
)

BUSI = DatasetSpec(
    name="busi",
    read=read,
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="dice",
    splits={"stratified": stratified},
    layout=LAYOUT,
    citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28, 2020",
    licence="free to use; cite the paper",
    url="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    sizes={"stratified": (546, 117, 117)},
    draw=draw,
    notes={
        "stratified": "BUSI does not say which images are of one patient, and holds near copies:"
        " some may be in training and in test."
    },
)
