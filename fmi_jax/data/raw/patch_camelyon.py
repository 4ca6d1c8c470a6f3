"""PatchCamelyon: histology patches with or without a metastasis in the middle.

A patch is positive if its central 32 x 32 pixels hold at least one pixel of tumour tissue.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.patch_camelyon import draw
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import grouped, official, stratified
from fmi_jax.data.raw.table import read_table
from fmi_jax.errors import UserError

CLASSES = ("Normal", "Tumor")

_FILE = "camelyonpatch_level_2_split_{part}_{kind}"
_PARTS = dict(zip(SPLITS, ("train", "valid", "test"), strict=True))


def read(source: Path) -> RawDataset:
    """List the patches of the six HDF5 files, with the slide of each if `_meta.csv` is there.

    Only labels and shapes are read. The id of a patch is its split and its index in the file.

    Raises:
      UserError: a file is missing, still compressed or malformed; the numbers of images, labels
        and rows of the table differ; or a label is not 0 or 1.
    """
    _check_files(source)
    problems = Problems(source)
    examples: list[RawExample] = []
    for split, part in _PARTS.items():
        images = _FILE.format(part=part, kind="x.h5")
        labels = _read_labels(source / _FILE.format(part=part, kind="y.h5"), problems)
        if (count := _count_images(source / images)) != len(labels):
            problems.add("images and labels differ in number", f"{part}: {count} and {len(labels)}")
        slides = _read_slides(source / _FILE.format(part=part, kind="meta.csv"), len(labels))
        if len(slides) != len(labels):
            problems.add(
                "rows of the table and labels differ in number",
                f"{part}: {len(slides)} and {len(labels)}",
            )
            continue
        examples += [
            RawExample(id=f"{part}_{i}", path=images, item=i, label=label, group=slide, split=split)
            for i, (label, slide) in enumerate(zip(labels.tolist(), slides, strict=True))
        ]
    problems.raise_if_any()
    return RawDataset(
        table=source, image_root=source, examples=examples, classes=CLASSES, label=Label.INDEX
    )


def _check_files(source: Path) -> None:
    problems = Problems(source)
    for part in _PARTS.values():
        for kind in ("x.h5", "y.h5"):
            path = source / _FILE.format(part=part, kind=kind)
            if path.is_file():
                continue
            if path.with_name(f"{path.name}.gz").is_file():
                problems.add("file is still compressed, run gunzip on it", f"{path.name}.gz")
            else:
                problems.add("file is missing", path.name)
    problems.raise_if_any(f"Expected {_LAYOUT}.")


@contextlib.contextmanager
def _open(path: Path, name: str) -> Iterator[h5py.Dataset]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is not a whole HDF5 file ({error}); download it again.") from None
    with file:
        if not isinstance(data := file.get(name), h5py.Dataset):
            names = ", ".join(file) or "nothing"
            raise UserError(f"{path} has no data set {name!r}; it holds {names}.")
        yield data


def _read_labels(path: Path, problems: Problems) -> np.ndarray:
    """Read the labels `[n]`; labels outside the classes are added to `problems`."""
    with _open(path, "y") as data:
        if data.size != len(data):
            raise UserError(f"{path}: labels of shape {data.shape}; expected (n, 1, 1, 1).")
        labels = data[()].reshape(-1)
    wrong = np.flatnonzero(~np.isin(labels, (0, 1)))
    problems.add(
        "label outside the classes, expected 0 or 1",
        *(f"{path.name}[{i}]: {labels[i]}" for i in wrong),
    )
    return labels.astype(int)


def _count_images(path: Path) -> int:
    with _open(path, "x") as data:
        if data.ndim != 4 or data.shape[3] != 3 or data.dtype != np.uint8:
            raise UserError(
                f"{path}: images of shape {data.shape} and type {data.dtype};"
                " expected (n, 96, 96, 3) and uint8."
            )
        return len(data)


def _read_slides(path: Path, count: int) -> list[str | None]:
    """Whole-slide image of each patch; None without the table."""
    if not path.is_file():
        return [None] * count
    _, rows = read_table(path, required=("wsi",))
    return [row.fields["wsi"] or None for row in rows]


_LAYOUT = (
    "a folder with camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, decompressed,"
    " and if you like their _meta.csv"
)

PATCH_CAMELYON = DatasetSpec(
    name="patch_camelyon",
    read=read,
    channels=3,
    mean=(0.69991202, 0.53839318, 0.69108667),
    std=(0.2308955, 0.27435492, 0.20865005),
    metric="roc_auc",
    splits={"official": official, "grouped": grouped, "stratified": stratified},
    layout=_LAYOUT,
    citation=(
        "Veeling et al., Rotation Equivariant CNNs for Digital Pathology, 2018;"
        " Ehteshami Bejnordi et al., JAMA 318(22), 2017 (Camelyon16)"
    ),
    licence="CC0",
    url="https://github.com/basveeling/pcam",
    draw=draw,
)
