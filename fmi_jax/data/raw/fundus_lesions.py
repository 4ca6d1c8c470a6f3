"""Fundus photographs with masks of their lesions: synthetic, drawn on first use."""

from pathlib import Path

from fmi_jax.data.raw import csv_table
from fmi_jax.data.raw.drawn.fundus_lesions import draw
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset
from fmi_jax.data.raw.splits import stratified

CLASSES = ("background", "lesion")


def read(source: Path) -> RawDataset:
    """Read `table.csv` (`path,mask`), as of one's own images.

    Raises:
      UserError: the table is missing or malformed.
    """
    return csv_table.read(source / "table.csv", classes=CLASSES)


FUNDUS_LESIONS = DatasetSpec(
    name="fundus_lesions",
    read=read,
    channels=3,
    mean=None,
    std=None,
    metric="",
    splits={"stratified": stratified},
    layout="a folder with table.csv (path,mask), images/ and masks/; drawn by a program",
    citation="drawn by fmi_jax",
    licence="Apache-2.0",
    url="",
    draw=draw,
    synthetic=True,
)
