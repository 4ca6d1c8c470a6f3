"""DRIVE: retinal photographs with masks of the vessels (Staal et al. 2004)."""

import re
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.drive import draw
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    RawDataset,
    RawExample,
)
from fmi_jax.data.raw.splits import official_test, stratified
from fmi_jax.errors import UserError

CLASSES = ("background", "vessel")

_PARTS = {"training": "train", "train": "train", "validate": "val", "val": "val", "test": "test"}
_MASKS = ("1st_manual", "labels")
_IMAGE = re.compile(r"((\d+)_\w+)\.(?:tif|png)")


def read(source: Path) -> RawDataset:
    """List `[DRIVE/]{training,test}/images/<number>_*.tif` and `1st_manual/<number>_manual1.gif`.

    The copy that the third study used is read too: `train/`, `validate/` and `test/` with PNG
    files, masks in `labels/`. The id is the name of the image without the suffix.

    Raises:
      UserError: the training or test folder is missing, an image has another kind of name or
        more than one mask.
    """
    root = source / "DRIVE"
    root = root if root.is_dir() else source
    folders = {part: split for part, split in _PARTS.items() if (root / part / "images").is_dir()}
    if not {"train", "test"} <= set(folders.values()):
        found = ", ".join(folders) or "neither"
        raise UserError(f"{root} has {found} of its parts; expected {LAYOUT}.")
    problems = Problems(root)
    examples = []
    for part, split in folders.items():
        for path in sorted((root / part / "images").iterdir()):
            if path.name.startswith("."):
                continue
            place = f"{part}/images/{path.name}"
            match = _IMAGE.fullmatch(path.name)
            if not match:
                problems.add("not named <number>_<any>.tif or .png", place)
                continue
            masks = [
                mask
                for folder in _MASKS
                for suffix in (".gif", ".png")
                for mask in [f"{part}/{folder}/{match[2]}_manual1{suffix}"]
                if (root / mask).is_file()
            ]
            if len(masks) > 1:
                problems.add("more than one mask of an image", " and ".join(masks))
            # Where there is none, this is the file that is missing.
            mask = masks[0] if masks else f"{part}/{_MASKS[0]}/{match[2]}_manual1.gif"
            examples.append(
                RawExample(id=match[1], path=place, label=1, split=split, masks=(mask,))
            )
    problems.raise_if_any()
    return RawDataset(
        table=source, image_root=root, examples=examples, classes=CLASSES, label=Label.MAP
    )


LAYOUT = (
    "a folder with training/ and test/, each with images/21_training.tif and"
    " 1st_manual/21_manual1.gif (or labels/21_manual1.png)"
)

DRIVE = DatasetSpec(
    name="drive",
    read=read,
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="dice",
    splits={"official": official_test, "stratified": stratified},
    layout=LAYOUT,
    citation="Staal et al., Ridge-based vessel segmentation in color images of the retina, IEEE"
    " Transactions on Medical Imaging 23, 2004",
    licence="for research; registration at Grand Challenge",
    url="https://drive.grand-challenge.org/",
    sizes={"official": (17, 3, 20)},
    draw=draw,
)
