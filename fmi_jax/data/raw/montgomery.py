"""Montgomery County: chest radiographs with masks of the lungs (Jaeger et al. 2014)."""

import re
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.montgomery import draw
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

CLASSES = ("background", "lung")

_SIDES = ("ManualMask/leftMask", "ManualMask/rightMask")
_MERGED = "ManualMask"
_NAME = re.compile(r"MCUCXR_\d{4}_([01])\.png")


def read(source: Path) -> RawDataset:
    """List `[MontgomerySet/]CXR_png/MCUCXR_<number>_<class>.png` and the masks of the same name.

    The masks of the left and the right lung are united. Where there are no folders for the two
    sides, `ManualMask` itself holds one mask for each image, as the third study has them. The id
    is the file name.

    Raises:
      UserError: there are no images, or a PNG has another kind of name.
    """
    root = source / "MontgomerySet"
    root = root if root.is_dir() else source
    if not (root / "CXR_png").is_dir():
        raise UserError(f"{root} has no folder CXR_png; expected {LAYOUT}.")
    names = sorted(path.name for path in (root / "CXR_png").glob("*.png"))
    if not names:
        raise UserError(f"{root / 'CXR_png'} holds no image; expected MCUCXR_0001_0.png and so on.")
    sides = any((root / side).is_dir() for side in _SIDES)
    folders = _SIDES if sides else (_MERGED,)
    problems = Problems(root)
    examples = []
    for name in names:
        match = _NAME.fullmatch(name)
        if not match:
            problems.add("not named MCUCXR_<four digits>_<0 or 1>.png", f"CXR_png/{name}")
            continue
        sick = match[1] == "1"
        examples.append(
            RawExample(
                id=name,
                path=f"CXR_png/{name}",
                label=1,
                masks=tuple(f"{folder}/{name}" for folder in folders),
                columns={"class": "Tuberculosis" if sick else "Normal"},
            )
        )
    problems.raise_if_any()
    return RawDataset(
        table=source, image_root=root, examples=examples, classes=CLASSES, label=Label.MAP
    )


LAYOUT = (
    "a folder with MontgomerySet/CXR_png/MCUCXR_<number>_<0 or 1>.png and masks of the same name in"
    " ManualMask/leftMask and ManualMask/rightMask, or merged in ManualMask"
)

MONTGOMERY = DatasetSpec(
    name="montgomery",
    read=read,
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="dice",
    splits={"stratified": stratified},
    layout=LAYOUT,
    citation="Jaeger et al., Two public chest X-ray datasets for computer-aided screening of"
    " pulmonary diseases, 2014; Candemir et al., Lung segmentation in chest radiographs using"
    " anatomical atlases with nonrigid registration, 2014",
    licence="free to use; acknowledge the National Library of Medicine and Montgomery County",
    url="https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/"
    "Montgomery-County-CXR-Set/MontgomerySet/index.html",
    sizes={"stratified": (96, 21, 21)},
    draw=draw,
)
