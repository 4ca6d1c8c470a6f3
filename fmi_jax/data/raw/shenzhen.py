"""Shenzhen Hospital: chest radiographs with and without tuberculosis."""

import re
from pathlib import Path

from fmi_jax.data.raw.drawn.shenzhen import draw
from fmi_jax.data.raw.labels import encode_classes
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.split_lists import read_split_lists
from fmi_jax.data.raw.splits import official, stratified
from fmi_jax.errors import UserError

CLASSES = ("Normal", "Tuberculosis")

LISTS = {
    "train": "ShenzenCXR_train_data.txt",
    "val": "ShenzenCXR_valid_data.txt",
    "test": "ShenzenCXR_test_data.txt",
}
"""Lists of the third study, in its spelling; its licence forbids passing them on."""

_NAME = re.compile(r"CHNCXR_\d{4}_([01])\.png")


def read(source: Path) -> RawDataset:
    """List `[ChinaSet_AllFiles/]CXR_png/CHNCXR_<number>_<class>.png`; the class is in the name.

    The split of an image comes from the lists in `source`, if they are there. The id of an image is
    its file name.

    Raises:
      UserError: there are no images, a PNG has another kind of name, or a list names an image that
        is not there.
    """
    folders = [source / "ChinaSet_AllFiles" / "CXR_png", source / "CXR_png"]
    folder = next(filter(Path.is_dir, folders), None)
    if folder is None:
        raise UserError(f"{source} has no folder CXR_png; expected {LAYOUT}.")
    names = sorted(path.name for path in folder.glob("*.png"))
    if not names:
        raise UserError(f"{folder} holds no image; expected CHNCXR_0001_0.png and so on.")
    problems = Problems(folder)
    matches = [_NAME.fullmatch(name) for name in names]
    problems.add(
        "not named CHNCXR_<four digits>_<0 or 1>.png",
        *(name for name, match in zip(names, matches, strict=True) if not match),
    )
    problems.raise_if_any()
    digits = [match[1] for match in matches if match]
    labels, classes, form = encode_classes(digits, names, CLASSES, problems)
    split_of = read_split_lists(source, LISTS, names)
    return RawDataset(
        table=source,
        image_root=folder,
        examples=[
            RawExample(id=name, path=name, label=label, split=split_of.get(name))
            for name, label in zip(names, labels, strict=True)
        ],
        classes=classes,
        label=form,
    )


LAYOUT = "a folder with ChinaSet_AllFiles/CXR_png/CHNCXR_<number>_<0 or 1>.png"

SHENZHEN = DatasetSpec(
    name="shenzhen",
    read=read,
    # The benchmark feeds its networks RGB with the statistics of ImageNet; this is the same.
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    metric="roc_auc",
    splits={"official": official, "stratified": stratified},
    layout=LAYOUT,
    citation="Jaeger et al., Two public chest X-ray datasets for computer-aided screening of"
    " pulmonary diseases, 2014",
    licence="free to use; acknowledge the National Library of Medicine and Shenzhen Hospital",
    url="https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/"
    "Shenzhen-Hospital-CXR-Set/index.html",
    sizes={"official": (463, 65, 134)},
    draw=draw,
)
