"""Rows to prepare, by split, with their files as they are on disk."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmi_jax.data.preparing.units import UnitRow
from fmi_jax.data.raw.spec import SPLITS, RawDataset, RawExample


class Row(NamedTuple):
    """A row of a raw data set that belongs to a split.

    Attributes:
      split: "train", "val" or "test".
      example: raw example of the row.
      path: path of its image file.
      bytes, mtime_ns: size and time of change of that file; None: there is no such file.
    """

    split: str
    example: RawExample
    path: Path
    bytes: int | None
    mtime_ns: int | None

    @property
    def for_worker(self) -> UnitRow:
        """Part of the row that a worker needs to prepare the image."""
        return UnitRow.of(self.example, self.path)

    @property
    def identity(self) -> list[Any]:
        """Everything that decides the prepared image and is known without opening the file."""
        e = self.example
        return [self.split, e.id, e.path, e.item, e.label, e.group, e.split, self.bytes]


def select_rows(
    raw: RawDataset, paths: Sequence[Path], rows: Mapping[str, Sequence[int]], limit: int
) -> list[Row]:
    """Select the rows of train, then val, then test, each in order.

    Args:
      raw: raw data set.
      paths: image file of each of its rows.
      rows: indices of the rows of each split.
      limit: number of rows to take from the start of every split; 0: all.
    """
    stats: dict[Path, tuple[int, int] | tuple[None, None]] = {}  # HDF5: one file, many images
    selected = []
    for split in SPLITS:
        for i in rows[split][: limit or None]:
            path = paths[i]
            if path not in stats:
                stats[path] = _stat(path)
            selected.append(Row(split, raw.examples[i], path, *stats[path]))
    return selected


def rows_sha256(rows: Sequence[Row]) -> str:
    """Checksum of the identities of the rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update((json.dumps(row.identity) + "\n").encode())
    return digest.hexdigest()


def _stat(path: Path) -> tuple[int, int] | tuple[None, None]:
    try:
        stat = os.stat(path)
    except OSError:
        return None, None
    return (stat.st_size, stat.st_mtime_ns) if path.is_file() else (None, None)
