"""Check of a raw data set: finds everything that is wrong, without writing anything."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmi_jax.data.labels import Label, disagree
from fmi_jax.data.preparing.locate import locate_files
from fmi_jax.data.preparing.reading import Scanned, scan_images
from fmi_jax.data.preparing.selection import MaskFile, Row
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UsageError, UserError


class Checked(NamedTuple):
    """Result of a check.

    Attributes:
      raw: raw data set, or None if the table itself cannot be read.
      problems: one line per kind of fault; empty: `prepare` will accept the data.
      doubts: one line per kind of thing that `prepare` accepts and that spoils results.
    """

    raw: RawDataset | None
    problems: list[str]
    doubts: list[str]


def check(spec: DatasetSpec, source: Path, *, processes: int = 0) -> Checked:
    """Read the table, check every row and its split, and decode every image, as `prepare` would.

    Args:
      spec: spec of the data set.
      source: path of the raw data, as `spec.layout` says.
      processes: number of processes; see `prepare_sizes`.
    """
    if not source.exists():
        return Checked(None, [f"{source} does not exist; expected {spec.layout}."], [])
    raw = None
    try:
        raw = spec.read(source)
        files = locate_files(raw)
    except UserError as error:
        return Checked(raw, str(error).splitlines(), [])
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
    lines = problems.lines()
    if "official" in spec.splits and any(example.split for example in raw.examples):
        try:
            assign(spec, "official", raw.examples)
        except UsageError as error:
            lines.append(str(error))
    return Checked(raw, lines, _doubts(raw, rows, found))


def _doubts(
    raw: RawDataset, rows: Sequence[Row], found: Sequence[Scanned | UserError]
) -> list[str]:
    """Find pictures with two labels, and groups that the raw data put into two splits."""
    doubts = Problems(raw.table)
    same: dict[str, list[RawExample]] = collections.defaultdict(list)
    for row, scanned in zip(rows, found, strict=True):
        if isinstance(scanned, Scanned):
            same[scanned.pixels_sha256].append(row.example)
    doubts.add(
        "the same picture with different labels",
        *(
            " and ".join(f"{e.where}: {_words(raw, e)}" for e in examples)
            for examples in same.values()
            if disagree([e.label for e in examples])
        ),
    )
    splits: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for example in raw.examples:
        if example.group and example.split:
            splits[example.group][example.split] = None
    doubts.add(
        "group (patient, lesion) that the raw data put into more than one split",
        *(f"{g!r} in {' and '.join(names)}" for g, names in splits.items() if len(names) > 1),
    )
    return doubts.lines()


def _words(raw: RawDataset, example: RawExample) -> str:
    """Names of the classes of an example; of one with masks, whether it has any."""
    if raw.label is Label.MAP:
        return "masks" if example.label else "no mask"
    if isinstance(example.label, int):
        return raw.classes[example.label]
    values = zip(raw.classes, example.label, strict=True)
    return ", ".join(f"{name} {value:g}" for name, value in values if value) or "none"
