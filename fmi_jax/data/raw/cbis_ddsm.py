"""CBIS-DDSM: scanned film mammograms with masses or calcifications, benign or malignant.

Three data sets come from one download:

* `cbis_ddsm`: whole mammograms, benign or malignant; malignant if any abnormality on it is.
* `cbis_ddsm_crops`: the published crop around each abnormality, benign or malignant.
* `cbis_ddsm_type`: the same crops, mass or calcification.

None of them is the study's "DDSM" task (data set `ddsm`: normal or not), because CBIS-DDSM
has no normal mammograms. Benign without callback counts as benign.

The tables describe abnormalities: 3,568 on 3,032 mammograms of 1,566 patients. 71 mammograms are
listed, and stored, both for masses and for calcifications; they count once. 31 patients and 29
mammograms are in a training and in a test table, one for masses and the other for calcifications.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fmi_jax.data.labels import Label
from fmi_jax.data.raw import splits
from fmi_jax.data.raw.drawn.cbis_ddsm import draw
from fmi_jax.data.raw.labels import encode_classes
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.table import read_table
from fmi_jax.errors import UserError

PATHOLOGIES = ("Benign", "Malignant")
TYPES = ("Mass", "Calcification")

_TABLES = tuple(
    (f"{kind.lower()}_case_description_{split}_set.csv", f"{kind}-{part}", split)
    for kind in ("Mass", "Calc")
    for part, split in (("Training", "train"), ("Test", "test"))
)
_COLUMNS = (
    "patient_id",
    "left or right breast",
    "image view",
    "abnormality id",
    "abnormality type",
    "pathology",
    "image file path",
    "cropped image file path",
)
_KEPT = {
    "left or right breast": "breast",
    "image view": "view",
    "breast_density": "density",  # of masses
    "breast density": "density",  # of calcifications
}
_CASE = re.compile(r"(Mass|Calc)-(Training|Test)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")


class Abnormality(NamedTuple):
    """One row of the tables.

    Attributes:
      case: name of the mammogram in the download, "Mass-Training_P_00001_LEFT_CC".
      film: patient, breast and view, which identify the mammogram in all tables.
      number: number of the abnormality on the mammogram.
      malignant: True if it is malignant, False if it is benign.
      split: "train" or "test", by the table.
      row: line of the table.
      file, crop_file: paths of the mammogram and of the crop as the table gives them.
      columns: breast, view and density of the breast.
    """

    case: str
    film: tuple[str, str, str]
    number: str
    malignant: bool
    split: str
    row: int
    file: str
    crop_file: str
    columns: Mapping[str, str]


def read_mammograms(source: Path) -> RawDataset:
    """Read the four tables and find the DICOM file of every mammogram.

    A mammogram listed in both a training and a test table is a test image.

    Raises:
      UserError: a table is missing or malformed, there are no DICOM files, or there is more than
        one for a mammogram.
    """
    dicoms = _find_dicoms(source)
    films: dict[tuple[str, str, str], list[Abnormality]] = {}
    for found in _read_tables(source):
        films.setdefault(found.film, []).append(found)
    problems = Problems(source)
    examples = []
    for listed in films.values():
        # A mammogram is stored once for each table that lists it.
        first = next((one for one in listed if one.case in dicoms), listed[0])
        files = dicoms.get(first.case, [first.file])
        if len(files) > 1:
            problems.add("more than one DICOM file of a mammogram", "; ".join(files))
        examples.append(
            RawExample(
                id=first.case,
                path=files[0],
                label=int(any(one.malignant for one in listed)),
                group=first.film[0],
                split="test" if any(one.split == "test" for one in listed) else "train",
                row=first.row,
                columns=first.columns,
            )
        )
    problems.raise_if_any("Keep one of them.")
    return _dataset(source, examples, PATHOLOGIES)


def read_crops(source: Path, *, label: Literal["pathology", "type"]) -> RawDataset:
    """Read the four tables and find the DICOM file of the crop around every abnormality.

    A folder of the download holds the crop and a mask of the whole mammogram. Neither their order
    nor their series description nor the columns of the tables tell which is which: the crop is
    the smaller image.

    Args:
      source: folder of the raw data.
      label: labels to read: benign or malignant ("pathology"), or mass or calcification ("type").

    Raises:
      UserError: a table is missing or malformed, there are no DICOM files, or a folder holds a
        single DICOM file instead of a crop and a mask.
    """
    dicoms = _find_dicoms(source)
    problems = Problems(source)
    examples = []
    for one in _read_tables(source):
        case = f"{one.case}_{one.number}"
        files = dicoms.get(case, [])
        if len(files) == 1:
            problems.add("one DICOM file, expected a crop and a mask", files[0])
        examples.append(
            RawExample(
                id=case,
                path=min(files, key=lambda file: _size(source / file), default=one.crop_file),
                label=int(one.malignant if label == "pathology" else case.startswith("Calc")),
                group=one.film[0],
                split=one.split,
                row=one.row,
                columns=one.columns,
            )
        )
    problems.raise_if_any("Download these series again.")
    return _dataset(source, examples, PATHOLOGIES if label == "pathology" else TYPES)


@splits.revised(2)
def official(examples: Sequence[RawExample]) -> splits.Assignment:
    """Split by the tables' training and test images; validation is 15% of the training images.

    Validation is drawn by patient, like the split "grouped", and was revised with it. Some patients
    are in both training and test.
    """
    train = [i for i, example in enumerate(examples) if example.split == "train"]
    drawn = splits.grouped([examples[i] for i in train])
    return {
        "train": sorted(train[i] for i in (*drawn["train"], *drawn["test"])),
        "val": [train[i] for i in drawn["val"]],
        "test": [i for i, example in enumerate(examples) if example.split == "test"],
    }


def _read_tables(source: Path) -> list[Abnormality]:
    problems = Problems(source)
    abnormalities = []
    for name, prefix, split in _TABLES:
        _, rows = read_table(source / name, required=_COLUMNS)
        places = [f"{name} row {row.line} ({row.fields['patient_id']!r})" for row in rows]
        pathologies, names, _ = encode_classes(
            [row.fields["pathology"] for row in rows],
            places,
            ("BENIGN", "BENIGN_WITHOUT_CALLBACK", "MALIGNANT"),
            problems,
        )
        kind = TYPES[prefix.startswith("Calc")].lower()
        for row, place, pathology in zip(rows, places, pathologies, strict=True):
            patient, breast, view, number, found, _, file, crop_file = (
                row.fields[column] for column in _COLUMNS
            )
            case = f"{prefix}_{patient}_{breast}_{view}"
            if not _CASE.fullmatch(f"{case}_{number}"):
                problems.add(
                    "not a patient, breast, view and abnormality; expected such as"
                    " P_00001, LEFT, CC and 1",
                    f"{place}: {patient}, {breast}, {view}, {number}",
                )
            if found != kind:
                problems.add(f"abnormality type in a table of {kind}", f"{place}: {found!r}")
            abnormalities.append(
                Abnormality(
                    case=case,
                    film=(patient, breast, view),
                    number=number,
                    malignant=pathology == names.index("MALIGNANT"),
                    split=split,
                    row=row.line,
                    file=file,
                    crop_file=crop_file,
                    columns=row.kept(_KEPT),
                )
            )
    problems.raise_if_any()
    return abnormalities


def _find_dicoms(source: Path) -> dict[str, list[str]]:
    """Find the DICOM files of each case, relative to `source`.

    The case is the name of a folder in every layout of the download. The folders and files in it
    have been named in several ways since the tables were written, so the tables' paths are useless.
    """
    dicoms: dict[str, list[str]] = {}
    for folder, _, names in os.walk(source):
        where = Path(folder).relative_to(source)
        if case := next(filter(_CASE.fullmatch, where.parts), None):
            files = [(where / name).as_posix() for name in names if name.lower().endswith(".dcm")]
            dicoms.setdefault(case, []).extend(files)
    dicoms = {case: sorted(files) for case, files in dicoms.items() if files}
    if not dicoms:
        raise UserError(
            f"{source} has no DICOM files in folders such as Mass-Training_P_00001_LEFT_CC;"
            f" expected {_LAYOUT}."
        )
    return dicoms


def _size(path: Path) -> tuple[int, int]:
    """Sort key that puts a crop before its mask: fewer pixels or, if equal, more bits per pixel."""
    from pydicom import dcmread  # slow to import

    tags = ["Rows", "Columns", "BitsAllocated"]
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
        return header.Rows * header.Columns, -header.BitsAllocated
    except Exception:  # pydicom raises anything on damaged bytes
        return 0, 0  # the smallest, so that it is taken, and reported when it is decoded


def _dataset(source: Path, examples: list[RawExample], classes: tuple[str, ...]) -> RawDataset:
    return RawDataset(
        table=source, image_root=source, examples=examples, classes=classes, label=Label.INDEX
    )


_LAYOUT = (
    "a folder with {mass,calc}_case_description_{train,test}_set.csv and the DICOM files of the"
    " NBIA Data Retriever (CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/.../1-1.dcm, ...)"
)

CBIS_DDSM = DatasetSpec(
    name="cbis_ddsm",
    read=read_mammograms,
    channels=1,
    mean=None,
    std=None,
    metric="roc_auc",
    splits={"grouped": splits.grouped, "official": official, "stratified": splits.stratified},
    layout=_LAYOUT,
    citation=(
        "Lee et al., A curated mammography data set for use in computer-aided detection and"
        " diagnosis research, Scientific Data 4, 2017"
    ),
    licence="CC BY 3.0",
    url="https://www.cancerimagingarchive.net/collection/cbis-ddsm/",
    draw=draw,
)

CBIS_DDSM_CROPS = dataclasses.replace(
    CBIS_DDSM, name="cbis_ddsm_crops", read=functools.partial(read_crops, label="pathology")
)

CBIS_DDSM_TYPE = dataclasses.replace(
    CBIS_DDSM, name="cbis_ddsm_type", read=functools.partial(read_crops, label="type")
)
