"""Everything that is wrong with a raw data set, found without writing anything."""

from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from fmi_jax.data.problems import Problems
from fmi_jax.data.scan import Scanned, locate_images, scan_images
from fmi_jax.data.spec import DatasetSpec, RawDataset
from fmi_jax.errors import UserError


class Checked(NamedTuple):
    """What a check found.

    Attributes:
      raw: the rows, or None if the table itself cannot be read.
      problems: one line per kind of fault; empty: `prepare` will take the data as they are.
    """

    raw: RawDataset | None
    problems: list[str]


def check(spec: DatasetSpec, source: Path) -> Checked:
    """Read the table, check every row and decode every image, as `prepare` would."""
    if not source.exists():
        return Checked(None, [f"{source} does not exist; expected {spec.layout}."])
    try:
        raw = spec.read(source)
    except UserError as error:
        return Checked(None, str(error).splitlines())
    try:
        paths = locate_images(raw)
    except UserError as error:
        return Checked(raw, str(error).splitlines())
    problems = Problems(raw.table)
    console = Console(stderr=True)
    scans = track(
        scan_images(paths, channels=spec.channels, size=1),
        description=f"Checking {spec.name}",
        total=len(paths),
        console=console,
        disable=not console.is_terminal,
    )
    for example, path, scan in zip(raw.examples, paths, scans, strict=True):
        if not isinstance(scan, Scanned):
            problems.add(str(scan), f"{example.where}: {path}")
    return Checked(raw, problems.lines())
