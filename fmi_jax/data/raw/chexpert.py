"""CheXpert: chest radiographs with fourteen findings (Irvin et al. 2019)."""

import dataclasses
import functools
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.chexpert import draw
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SPLITS,
    DatasetSpec,
    RawDataset,
    RawExample,
)
from fmi_jax.data.raw.splits import SEED, Assignment
from fmi_jax.data.raw.table import TableRow, read_table
from fmi_jax.errors import UsageError, UserError

CLASSES = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""Five findings of the CheXpert competition, over which the third study averages."""

U_ZEROS, U_ONES, SMOOTHED = (0.0, 0.0), (1.0, 1.0), (0.55, 0.85)
"""Ranges from which the value of an uncertain finding is drawn. Smoothed: Pham et al. 2021."""

U_IGNORE = (math.nan, math.nan)
"""Range of an uncertain finding that is not known."""

_COLUMNS = {"Sex": "sex", "Age": "age", "Frontal/Lateral": "view", "AP/PA": "projection"}

_PRESENT, _ABSENT, _UNCERTAIN = ("1.0", "1"), ("", "0.0", "0"), ("-1.0", "-1")
_PATH = re.compile(r"[^/]+/((?:train|valid)/(patient\d+)/[^/]+/[^/]+)")


def read(source: Path, *, uncertain: tuple[float, float] = U_ZEROS) -> RawDataset:
    """Read `train.csv` and `valid.csv`; a `Path` starts with the name of the folder itself.

    A finding that is not mentioned is absent, and an image without any finding has "No Finding",
    as in the study; if all that it may have is not known, neither is "No Finding". The group is the
    patient. The split is "train" for `train.csv`, whose labels a program read from the reports, and
    "test" for `valid.csv`, labelled by radiologists.

    Args:
      source: folder of the two tables, or the folder around it.
      uncertain: range of the value of an uncertain finding. The value is drawn once for each image
        and finding, and is the same at every reading.

    Raises:
      UserError: a table is missing or malformed, or a label is not one of the valid values. All
        faults of a table are listed.
    """
    folder = _folder(source)
    examples = []
    for name, split in (("train", "train"), ("valid", "test")):
        table = folder / f"{name}.csv"
        _, rows = read_table(table, required=("Path", *CLASSES))
        problems = Problems(table)
        examples += [_example(row, split, uncertain, problems) for row in rows]
        problems.raise_if_any()
    return RawDataset(
        table=folder / "train.csv",
        image_root=folder,
        examples=examples,
        classes=CLASSES,
        label=Label.VECTOR,
    )


def upstream(examples: Sequence[RawExample]) -> Assignment:
    """Split `train.csv` exactly as the study did (docs/protocols.md, B21); `valid.csv` is unused.

    The study sorts the table by path and then slices it by row number, with both ends included.
    So one row is in both train and test, and another in both validation and test (of 223,414
    rows). They stay: `prepare` reports them as duplicates across splits.

    Raises:
      UsageError: the row at which the study cuts is not where its rule looks for it, which
        happens with small tables only.
    """
    rows = _rows_of("train", examples)
    cut = int(0.2 * len(rows)) + 15
    ranked = sorted(rows, key=lambda i: examples[i].path)
    try:
        start = ranked.index(cut)
        held_out = ranked[: start + 1]
        middle = held_out.index(len(held_out) // 2)
    except ValueError:
        raise UsageError(
            f"the split 'upstream' cannot cut these {len(rows)} rows of train.csv; expected the"
            " table as published. Other splits: official, grouped."
        ) from None
    return {"train": ranked[start:], "val": held_out[: middle + 1], "test": held_out[middle:]}


def official(examples: Sequence[RawExample]) -> Assignment:
    """Split with `valid.csv` as test; a random tenth of `train.csv`'s patients is validation."""
    return _deal_patients(examples, ("val",)) | {"test": _rows_of("test", examples)}


def grouped(examples: Sequence[RawExample]) -> Assignment:
    """Split the patients of `train.csv` 80/10/10 at random; `valid.csv` is unused.

    It does not look at the labels, so it is the same for every treatment of uncertain findings.
    """
    return _deal_patients(examples, ("val", "test"))


def _folder(source: Path) -> Path:
    """Folder of the tables: `source`, or the one inside it."""
    if (source / "train.csv").is_file():
        return source
    inside = sorted(table.parent for table in source.glob("CheXpert-v1.0*/train.csv"))
    if len(inside) > 1:
        names = ", ".join(folder.name for folder in inside)
        raise UserError(f"{source} holds {names}; expected one of them as the source.")
    return inside[0] if inside else source


def _example(
    row: TableRow, split: str, uncertain: tuple[float, float], problems: Problems
) -> RawExample:
    written = row.fields["Path"]
    match = _PATH.fullmatch(written)
    if not match:
        problems.add(
            "path without a patient, expected 'CheXpert-v1.0-small/train/patient00001/study1/...'",
            f"row {row.line}: {written!r}",
        )
    path, patient = match.groups() if match else (written, "")

    def value(name: str) -> float:
        label = row.fields[name]
        if label in _UNCERTAIN:
            return random.Random(f"{path} {name}").uniform(*uncertain)
        if label not in _ABSENT and label not in _PRESENT:
            problems.add(
                "label is not 1.0 (present), 0.0 (absent), -1.0 (uncertain) or blank",
                f"row {row.line} ({path!r}), {name}: {label!r}",
            )
        return float(label in _PRESENT)

    label = tuple(value(name) for name in CLASSES)
    if not any(value > 0 for value in label):
        no_finding = math.nan if any(map(math.isnan, label)) else 1.0
        label = (no_finding, *label[1:])
    return RawExample(
        id=path,
        path=path,
        label=label,
        group=patient,
        split=split,
        row=row.line,
        columns=row.kept(_COLUMNS),
    )


def _rows_of(split: str, examples: Sequence[RawExample]) -> list[int]:
    return [i for i, example in enumerate(examples) if example.split == split]


def _deal_patients(examples: Sequence[RawExample], parts: tuple[str, ...]) -> Assignment:
    """Deal out the rows of `train.csv`: to each of `parts` a tenth of the patients, else train."""
    rows = _rows_of("train", examples)
    patients = sorted({str(examples[i].group) for i in rows})
    random.Random(SEED).shuffle(patients)
    tenth = max(1, len(patients) // 10)
    part_of = {
        patient: part
        for n, part in enumerate(parts)
        for patient in patients[n * tenth : (n + 1) * tenth]
    }
    dealt: Assignment = {name: [] for name in SPLITS}
    for i in rows:
        dealt[part_of.get(str(examples[i].group), "train")].append(i)
    return dealt


def _notes(treatment: str) -> dict[str, str]:
    """Note of the splits whose test labels change with the treatment of uncertain findings."""
    note = (
        f"The test labels come from train.csv, and their uncertain findings count as {treatment}."
        " Under another treatment the test labels are others, so its numbers cannot be compared"
        " with these; split=official tests on the labels of radiologists."
    )
    return {"upstream": note, "grouped": note}


CHEXPERT = DatasetSpec(
    name="chexpert",
    read=read,
    channels=1,
    mean=(0.503,),
    std=(0.292,),
    metric="roc_auc",
    splits={"official": official, "grouped": grouped, "upstream": upstream},
    layout="the folder CheXpert-v1.0-small (or CheXpert-v1.0) with train.csv, valid.csv and the"
    " images in train/ and valid/",
    citation="Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and"
    " Expert Comparison, AAAI 2019",
    licence="Stanford University School of Medicine CheXpert Dataset Research Use Agreement",
    url="https://stanfordmlgroup.github.io/competitions/chexpert/",
    sizes={"official": (201_308, 22_106, 234), "upstream": (178_710, 22_353, 22_353)},
    draw=draw,
    class_groups={"competition": COMPETITION},
    notes=_notes("absent"),
)

CHEXPERT_U_ONES = dataclasses.replace(
    CHEXPERT,
    name="chexpert_u_ones",
    read=functools.partial(read, uncertain=U_ONES),
    notes=_notes("present"),
)

CHEXPERT_SMOOTH = dataclasses.replace(
    CHEXPERT,
    name="chexpert_smooth",
    read=functools.partial(read, uncertain=SMOOTHED),
    notes=_notes("present (in training as 0.55 to 0.85)"),
)

CHEXPERT_RGB = dataclasses.replace(
    CHEXPERT_SMOOTH,  # as the third study reads it, with the pixels of its other data sets
    name="chexpert_rgb",
    channels=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

CHEXPERT_U_IGNORE = dataclasses.replace(
    CHEXPERT,
    name="chexpert_u_ignore",
    read=functools.partial(read, uncertain=U_IGNORE),
    notes=_notes("not known (left out of every metric)"),
)
