"""SCR: lungs, heart and clavicles on the radiographs of the JSRT database, alone or all at once.

The masks (van Ginneken et al. 2006) come without the images (Shiraishi et al. 2000): both have to
be downloaded.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.scr import draw
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    RawDataset,
    RawExample,
)
from fmi_jax.data.raw.splits import Assignment, official_test, stratified
from fmi_jax.errors import UserError

_FOLDS = {"fold1": "train", "fold2": "test"}
_MASK_SIZE = (1024, 1024)  # half the side of the images
_NAME = re.compile(r"(JPC([LN])N\d{3})\.(?:IMG|img)")


LUNG = {"lung": ("left lung", "right lung")}
HEART = {"heart": ("heart",)}
CLAVICLE = {"clavicle": ("left clavicle", "right clavicle")}
"""Folders of the masks of each part, which are united."""


def read(source: Path, *, parts: Mapping[str, tuple[str, ...]]) -> RawDataset:
    """List `All247images/<image>.IMG` and the masks of each image.

    The masks are `[scratch/]fold<1 or 2>/masks/<folder>/<image>.gif`. The split of an image is
    "train" in the first fold and "test" in the second. The id is the name without the suffix.

    Args:
      source: folder of the images and of the folds.
      parts: folders of the masks of each class. One class is beside the background; several may
        overlap.

    Raises:
      UserError: images or folds are missing, an image is in no fold or in both, or the files of the
        images differ in size.
    """
    files = [(c, folder) for c, folders in enumerate(parts.values()) for folder in folders]
    overlap, first = len(parts) > 1, files[0][1]
    images = source / "All247images"
    folds = source / "scratch" if (source / "scratch").is_dir() else source
    for folder in (images, *(folds / fold / "masks" / first for fold in _FOLDS)):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; expected {LAYOUT}.")
    problems = Problems(source)
    examples, sizes = [], {}
    for path in sorted(images.iterdir()):
        match = _NAME.fullmatch(path.name)
        if not match:
            continue  # the download has overlays and texts beside the images
        sizes[path.name] = path.stat().st_size
        name, nodule = match.groups()
        mask = f"masks/{first}/{name}.gif"
        where = [fold for fold in _FOLDS if (folds / fold / mask).is_file()]
        if len(where) != 1:
            found = " and ".join(where) or "neither"
            problems.add(f"{first} mask in {found}, expected one fold", path.name)
            continue
        masks = folds.relative_to(source) / where[0] / "masks"
        examples.append(
            RawExample(
                id=name,
                path=f"{images.name}/{path.name}",
                label=(1.0,) * len(parts) if overlap else 1,
                split=_FOLDS[where[0]],
                masks=tuple((masks / folder / f"{name}.gif").as_posix() for _, folder in files),
                layers=tuple(c for c, _ in files) if overlap else (),
                mask_size=_MASK_SIZE,
                columns={"nodule": "yes" if nodule == "L" else "no"},
            )
        )
    if not sizes:
        raise UserError(f"{images} holds no image; expected JPCLN001.IMG and so on.")
    # The files have no header: one that is cut short can be told by its size alone.
    largest = max(sizes.values())
    problems.add(
        f"not {largest} bytes like the others, cut short",
        *(f"{name} ({size})" for name, size in sizes.items() if size != largest),
    )
    problems.raise_if_any()
    return RawDataset(
        table=source,
        image_root=source,
        examples=examples,
        classes=(*parts,) if overlap else ("background", *parts),
        label=Label.LAYERS if overlap else Label.MAP,
    )


def swapped(examples: Sequence[RawExample]) -> Assignment:
    """Split the other way: training and validation from the second fold, the first is the test."""
    other = {"train": "test", "test": "train"}
    return official_test([dataclasses.replace(e, split=other[str(e.split)]) for e in examples])


LAYOUT = (
    "a folder with All247images/JPCLN001.IMG and so on (JSRT) and, in it or in scratch/, fold1/ and"
    " fold2/ with masks/heart/JPCLN001.gif, masks/left clavicle/, masks/right lung/ and so on (SCR)"
)

SCR = DatasetSpec(
    name="scr",
    read=functools.partial(read, parts=LUNG | HEART | CLAVICLE),
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="dice",
    splits={"official": official_test, "swapped": swapped, "stratified": stratified},
    layout=LAYOUT,
    citation="van Ginneken et al., Segmentation of anatomical structures in chest radiographs using"
    " supervised methods, Medical Image Analysis 10, 2006; Shiraishi et al., Development of a"
    " digital image database for chest radiographs with and without a lung nodule, American Journal"
    " of Roentgenology 174, 2000",
    licence="free for research and education; not to be passed on or used commercially",
    url="https://www.isi.uu.nl/Research/Databases/SCR/",
    sizes={"official": (105, 19, 123)},
    draw=draw,
)

SCR_HEART = dataclasses.replace(SCR, name="scr_heart", read=functools.partial(read, parts=HEART))

SCR_CLAVICLE = dataclasses.replace(
    SCR, name="scr_clavicle", read=functools.partial(read, parts=CLAVICLE)
)
