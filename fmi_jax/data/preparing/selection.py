"""Rows to prepare, by split, with their files as they are on disk."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmi_jax.data.preparing.locate import Files
from fmi_jax.data.raw.spec import SPLITS, RawDataset, RawExample

# Rows are sent to worker processes, so this module imports neither jax nor what imports it.


class MaskFile(NamedTuple):
    """A mask file as it is on disk.

    Attributes:
      path: path of the file.
      bytes, mtime_ns: size and time of change; None: there is no such file.
    """

    path: Path
    bytes: int | None = None
    mtime_ns: int | None = None


class Row(NamedTuple):
    """A row of a raw data set, and its files.

    Attributes:
      example: the row.
      path: its image file.
      split: "train", "val" or "test"; empty where rows are only checked.
      bytes, mtime_ns: size and time of change of that file; None: there is no such file.
      masks: mask files that are united.
    """

    example: RawExample
    path: Path
    split: str = ""
    bytes: int | None = None
    mtime_ns: int | None = None
    masks: tuple[MaskFile, ...] = ()

    @property
    def place(self) -> str:
        """How messages point at it."""
        return f"{self.example.where}: {self.path}"

    @property
    def identity(self) -> list[Any]:
        """Everything that decides the prepared row and is known without opening the file."""
        e = self.example
        masks = [[*map(list, zip(e.masks, (m.bytes for m in self.masks), strict=True))]]
        return [
            *(self.split, e.id, e.path, e.item, e.label, e.group, e.split, self.bytes),
            *(masks if self.masks else ()),
            *([e.layers] if e.layers else ()),
            *([e.runs] if e.runs else ()),
            *([e.mask_size] if e.mask_size else ()),
            *([e.boxes] if e.boxes else ()),
        ]

    @property
    def changed(self) -> Any:
        """When its files were changed last: a time, or a list of times where there are masks."""
        masks = [mask.mtime_ns for mask in self.masks]
        return [self.mtime_ns, *masks] if masks else self.mtime_ns


def select_rows(
    raw: RawDataset, files: Sequence[Files], rows: Mapping[str, Sequence[int]], limit: int
) -> list[Row]:
    """Select the rows of train, then val, then test, each in order.

    Args:
      raw: raw data set.
      files: files of each of its rows.
      rows: indices of the rows of each split.
      limit: number of rows to take from the start of every split; 0: all.
    """
    stat = functools.cache(_stat)  # HDF5: one file, many images
    selected = []
    for split in SPLITS:
        for i in rows[split][: limit or None]:
            image, masks = files[i]
            found = tuple(MaskFile(path, *stat(path)) for path in masks)
            selected.append(Row(raw.examples[i], image, split, *stat(image), found))
    return selected


def _stat(path: Path) -> tuple[int, int] | tuple[None, None]:
    try:
        stat = os.stat(path)
    except OSError:
        return None, None
    return (stat.st_size, stat.st_mtime_ns) if path.is_file() else (None, None)
