"""Builds the missing parts of prepared folders, and only those."""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmi_jax.data.preparing.reading import read_images
from fmi_jax.data.preparing.selection import Row
from fmi_jax.data.preparing.unchanged import Stamps
from fmi_jax.data.preparing.units import Unit, UnitNote, write_unit
from fmi_jax.data.preparing.write import WrittenUnit, versions, write_folder
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec, RawDataset
from fmi_jax.errors import UserError

MEND_OR_QUARANTINE = "Mend these files, or leave them out with --on-bad quarantine."

# A shard is a unit of work, so there should be many. But a reader keeps all of them open, and
# some systems allow only 256 files.
_MIN_ROWS = 16
_MAX_SHARDS = 128


def build_folders(
    folders: Mapping[int, Path],
    spec: DatasetSpec,
    raw: RawDataset,
    rows: Sequence[Row],
    recipes: Mapping[int, Mapping[str, Any]],
    processes: int,
) -> None:
    """Prepare `rows` at every size of `folders`, reusing the finished units of earlier runs.

    Args:
      folders: folder of each size; existing ones are replaced.
      spec, raw: spec and rows of the data set.
      rows: rows of all splits, in order.
      recipes: part of the manifest that is known beforehand, by size.
      processes: number of processes; see `prepare_sizes`.

    Raises:
      UserError: an image cannot be used and the recipe does not say "quarantine", too few can,
        a process was killed, or there is no room. No folder is changed then.
    """
    chunks = _chunks(rows)
    shards = {
        size: [partial_folder(folder) / _name(chunk, recipes[size]) for chunk in chunks]
        for size, folder in folders.items()
    }
    tasks = [
        Unit(chunk.split, tuple(row.for_worker for row in chunk.rows), missing)
        for i, chunk in enumerate(chunks)
        if (missing := {size: shards[size][i] for size in folders if not _done(shards[size][i])})
    ]
    try:
        for folder in folders.values():
            partial_folder(folder).mkdir(exist_ok=True)
        _check_space(folders, tasks, spec.channels)
        read = read_images(
            functools.partial(
                write_unit,
                channels=spec.channels,
                classes=raw.classes,
                label=raw.label,
            ),
            tasks,
            [task.rows for task in tasks],
            description=f"Preparing {spec.name}",
            processes=processes,
        )
        for _ in read:
            pass
        units = {
            size: [
                WrittenUnit(chunk.split, chunk.rows, shard, _note(shard))
                for chunk, shard in zip(chunks, shards[size], strict=True)
            ]
            for size in folders
        }
        for size in folders:
            _check_images(raw, units[size], recipes[size]["on_bad"])
        for size, folder in folders.items():
            _finish(folder, spec, raw, rows, units[size], recipes[size])
    except OSError as error:
        where = next(iter(folders.values())).parent
        raise UserError(f"cannot write to {where}: {error.strerror or error}.") from error


def partial_folder(folder: Path) -> Path:
    """Hidden folder in which the finished units of a folder wait for the others."""
    return folder.with_name(f".{folder.name}.partial")


class _Chunk(NamedTuple):
    split: str
    rows: Sequence[Row]


def _chunks(rows: Sequence[Row]) -> list[_Chunk]:
    """Cut the rows into chunks of one shard each, the same for every size."""
    length = max(_MIN_ROWS, -(-len(rows) // _MAX_SHARDS))
    of_split = {split: [row for row in rows if row.split == split] for split in SPLITS}
    return [
        _Chunk(split, members[i : i + length])
        for split, members in of_split.items()
        for i in range(0, len(members), length)
    ]


def _name(chunk: _Chunk, recipe: Mapping[str, Any]) -> str:
    """Name a shard by a hash of everything that decides its bytes."""
    how = {key: recipe[key] for key in ("format", "channels", "size", "task", "classes")}
    what = [(*row.identity, row.mtime_ns) for row in chunk.rows]
    return hashlib.sha256(json.dumps([how, versions(), what]).encode()).hexdigest()[:32]


def _done(shard: Path) -> bool:
    """Test whether a unit is done; a unit with failed images is not, as they may work next time."""
    note = UnitNote.read(shard)
    return note is not None and note.records == len(note.images)


def _note(shard: Path) -> UnitNote:
    note = UnitNote.read(shard)
    if note is None:
        raise UserError(f"{shard} was there and is gone; expected to be alone in its folder.")
    return note


def _check_space(folders: Mapping[int, Path], tasks: Sequence[Unit], channels: int) -> None:
    needed = sum(len(t.rows) * size * size * channels for t in tasks for size in t.shards)
    parent = next(iter(folders.values())).parent
    free = shutil.disk_usage(parent).free
    if free < needed * 1.05:
        raise UserError(f"{parent} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed.")


def _check_images(raw: RawDataset, units: Sequence[WrittenUnit], on_bad: str) -> None:
    """Raise `UserError` for images that cannot be used, or for too many of them."""
    problems = Problems(raw.table)
    records: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for unit in units:
        records[unit.split] += unit.note.records
        for row, image in zip(unit.rows, unit.note.images, strict=True):
            if isinstance(image, str):
                problems.add(image, f"{row.example.where}: {row.path}")
    if on_bad == "fail":
        problems.raise_if_any(
            f"{MEND_OR_QUARANTINE} The other images need not be prepared again then."
        )
    if empty := [split for split, count in records.items() if not count]:
        problems.raise_if_any(f"Without these, {' and '.join(empty)} would have no image.")


def _finish(
    folder: Path,
    spec: DatasetSpec,
    raw: RawDataset,
    rows: Sequence[Row],
    units: Sequence[WrittenUnit],
    recipe: Mapping[str, Any],
) -> None:
    """Make the whole folder from the finished units, and put it in the place of the old one."""
    partial = partial_folder(folder)
    whole, old = partial / "whole", partial / "old"
    for left in (whole, old):  # leftovers of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    whole.mkdir()
    manifest_sha256 = write_folder(whole, spec, raw, units, recipe)
    Stamps(folder).write(manifest_sha256, rows)
    if folder.exists():
        folder.rename(old)
    whole.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
