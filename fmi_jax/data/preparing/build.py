"""Builds the missing parts of prepared folders, and only those."""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmi_jax.data.preparing.reading import read_images
from fmi_jax.data.preparing.selection import Row
from fmi_jax.data.preparing.shard import Shard, write_shards
from fmi_jax.data.preparing.unchanged import write_stamps
from fmi_jax.data.preparing.write import versions, write_folder
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
        size: [
            Shard(chunk, size, partial_folder(folder) / _name(chunk, recipes[size]))
            for chunk in chunks
        ]
        for size, folder in folders.items()
    }
    tasks = [
        missing
        for same_rows in zip(*shards.values(), strict=True)
        if (missing := [shard for shard in same_rows if not shard.is_done()])
    ]
    try:
        for folder in folders.values():
            partial_folder(folder).mkdir(exist_ok=True)
        _check_space(folders, tasks, spec.channels + (raw.label.of_pixels))
        for _ in read_images(
            functools.partial(
                write_shards,
                channels=spec.channels,
                classes=raw.classes,
                label=raw.label,
                mask_resize=next(iter(recipes.values())).get("mask_resize", ""),
            ),
            tasks,
            [task[0].rows for task in tasks],
            description=f"Preparing {spec.name}",
            processes=processes,
        ):
            pass
        for size in folders:
            _check_images(raw, shards[size], recipes[size]["on_bad"])
        for size, folder in folders.items():
            _finish(folder, spec, raw, rows, shards[size], recipes[size])
    except OSError as error:
        where = next(iter(folders.values())).parent
        raise UserError(f"cannot write to {where}: {error.strerror or error}.") from error


def partial_folder(folder: Path) -> Path:
    """Where the finished shards of a folder wait for the others."""
    return folder.with_name(f".{folder.name}.partial")


def _chunks(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Cut the rows into those of one shard each, the same for every size."""
    length = max(_MIN_ROWS, -(-len(rows) // _MAX_SHARDS))
    of_split = {split: [row for row in rows if row.split == split] for split in SPLITS}
    return [
        members[i : i + length]
        for members in of_split.values()
        for i in range(0, len(members), length)
    ]


def _name(rows: Sequence[Row], recipe: Mapping[str, Any]) -> str:
    """The name of a shard: a hash of all that decides its bytes."""
    keys = ("format", "channels", "size", "label", "classes", "mask_resize")
    how = {key: recipe[key] for key in keys if key in recipe}
    what = [(*row.identity, row.changed) for row in rows]
    return hashlib.sha256(json.dumps([how, versions(), what]).encode()).hexdigest()[:32]


def _check_space(
    folders: Mapping[int, Path], tasks: Sequence[Sequence[Shard]], planes: int
) -> None:
    needed = sum(len(s.rows) * s.size * s.size * planes for task in tasks for s in task)
    parent = next(iter(folders.values())).parent
    free = shutil.disk_usage(parent).free
    if free < needed * 1.05:
        raise UserError(f"{parent} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed.")


def _check_images(raw: RawDataset, shards: Sequence[Shard], on_bad: str) -> None:
    """Refuse images that cannot be used, or too many of them."""
    problems = Problems(raw.table)
    for shard in shards:
        for row, image in zip(shard.rows, shard.note.images, strict=True):
            if isinstance(image, str):
                problems.add(image, row.place)
    if on_bad == "fail":
        problems.raise_if_any(
            f"{MEND_OR_QUARANTINE} The other images need not be prepared again then."
        )
    filled = {shard.split for shard in shards if shard.note.records}
    asked = dict.fromkeys(shard.split for shard in shards)
    if empty := [split for split in asked if split not in filled]:
        problems.raise_if_any(f"Without these, {' and '.join(empty)} would have no image.")


def _finish(
    folder: Path,
    spec: DatasetSpec,
    raw: RawDataset,
    rows: Sequence[Row],
    shards: Sequence[Shard],
    recipe: Mapping[str, Any],
) -> None:
    """Make a whole folder of the finished shards, and put it in the place of the old one."""
    partial = partial_folder(folder)
    whole, old = partial / "whole", partial / "old"
    for left in (whole, old):  # leftovers of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    whole.mkdir()
    manifest_sha256 = write_folder(whole, spec, raw, shards, recipe)
    write_stamps(folder, manifest_sha256, rows)
    if folder.exists():
        folder.rename(old)
    whole.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
