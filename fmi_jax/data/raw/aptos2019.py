"""APTOS 2019: fundus photographs graded for diabetic retinopathy."""

import functools
from pathlib import Path

from fmi_jax.data.raw.drawn.fundus import draw as draw_fundus
from fmi_jax.data.raw.labels import encode_classes
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import stratified, upstream
from fmi_jax.data.raw.table import read_table

CLASSES = ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")


def read(source: Path) -> RawDataset:
    """Read `train.csv` (`id_code,diagnosis`); images are `train_images/<id_code>.png`.

    Raises:
      UserError: the table is missing or malformed, or a grade is not 0 to 4.
    """
    table = source / "train.csv"
    _, rows = read_table(table, required=("id_code", "diagnosis"))
    problems = Problems(table)
    labels, classes, form = encode_classes(
        [row.fields["diagnosis"] for row in rows],
        [f"row {row.line} ({row.fields['id_code']!r})" for row in rows],
        CLASSES,
        problems,
    )
    problems.raise_if_any()
    return RawDataset(
        table=table,
        image_root=source / "train_images",
        examples=[
            RawExample(
                id=row.fields["id_code"],
                path=f"{row.fields['id_code']}.png",
                label=label,
                row=row.line,
            )
            for row, label in zip(rows, labels, strict=True)
        ],
        classes=classes,
        label=form,
    )


APTOS2019 = DatasetSpec(
    name="aptos2019",
    read=read,
    channels=3,
    mean=(0.415, 0.221, 0.073),
    std=(0.275, 0.150, 0.081),
    metric="quadratic_kappa",
    splits={"upstream": upstream, "stratified": stratified},
    layout="a folder with train.csv (id_code,diagnosis) and train_images/<id_code>.png",
    citation="APTOS 2019 Blindness Detection, Asia Pacific Tele-Ophthalmology Society, 2019",
    licence="Kaggle competition rules",
    url="https://www.kaggle.com/competitions/aptos2019-blindness-detection",
    sizes={"upstream": (2_564, 549, 549)},
    draw=functools.partial(draw_fundus, count=48),
    ordinal=True,
)
