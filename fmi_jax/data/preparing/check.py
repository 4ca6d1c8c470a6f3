"""Check of a raw data set: finds everything that is wrong, without writing anything."""

from pathlib import Path
from typing import NamedTuple

from fmi_jax.data.preparing.locate import locate_files
from fmi_jax.data.preparing.reading import scan_images
from fmi_jax.data.preparing.selection import MaskFile, Row
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset
from fmi_jax.errors import UserError


class Checked(NamedTuple):
    """Result of a check.

    Attributes:
      raw: raw data set, or None if the table itself cannot be read.
      problems: one line per kind of fault; empty: `prepare` will accept the data.
    """

    raw: RawDataset | None
    problems: list[str]


def check(spec: DatasetSpec, source: Path, *, processes: int = 0) -> Checked:
    """Read the table, check every row and decode every image, as `prepare` would.

    Args:
      spec: spec of the data set.
      source: path of the raw data, as `spec.layout` says.
      processes: number of processes; see `prepare_sizes`.
    """
    if not source.exists():
        return Checked(None, [f"{source} does not exist; expected {spec.layout}."])
    raw = None
    try:
        raw = spec.read(source)
        files = locate_files(raw)
    except UserError as error:
        return Checked(raw, str(error).splitlines())
    rows = [
        Row(example, image, masks=tuple(map(MaskFile, masks)))
        for example, (image, masks) in zip(raw.examples, files, strict=True)
    ]
    found = scan_images(
        rows,
        num_classes=len(raw.classes),
        channels=spec.channels,
        description=f"Checking {spec.name}",
        processes=processes,
    )
    problems = Problems(raw.table)
    for row, scanned in zip(rows, found, strict=True):
        if isinstance(scanned, UserError):
            problems.add(str(scanned), row.place)
    return Checked(raw, problems.lines())
