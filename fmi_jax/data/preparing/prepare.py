"""Preparation of data sets: every row is checked, every image decoded once.

The work is cut into shards of rows, which processes take in turn; each appears whole, with a note
of what went into it, in a hidden folder beside the place of the finished one. A run that is
killed, or that meets an image it cannot use, leaves them there, and the next one goes on with
what is missing or was made from other files. The finished folder appears at once; its bytes do
not depend on interruptions, on the number of processes or on the sizes prepared together.

Memory: a process needs 130 MB and 13 bytes per pixel of the largest raw image, that is 170 MB for
3 megapixels and 1.9 GB for the largest allowed image (134). The parent process needs another 1 to
2 kB per row.
"""

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import (
    FORMAT,
    PreparedDataset,
    limited,
    lines_sha256,
    open_folder,
)
from fmi_jax.data.preparing.build import MEND_OR_QUARANTINE, build_folders, partial_folder
from fmi_jax.data.preparing.locate import locate_files
from fmi_jax.data.preparing.masks import RESIZES
from fmi_jax.data.preparing.selection import Row, select_rows
from fmi_jax.data.preparing.unchanged import check_unchanged
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset
from fmi_jax.data.raw.splits import assign, revision
from fmi_jax.errors import UsageError, UserError, unknown_name
from fmi_jax.paths import fault_of_file
from fmi_jax.tasks.registry import Task, suitable

ON_BAD = ("fail", "quarantine")
"""Policies for images that cannot be used: refuse the data set, or leave them out by name."""

_MAX_SIZE = 4096


def prepare(
    spec: DatasetSpec, source: Path | None, data_dir: Path, *, size: int = 256, **options: Any
) -> PreparedDataset:
    """Prepare a data set at one size; same as `prepare_sizes` otherwise."""
    return prepare_sizes(spec, source, data_dir, sizes=(size,), **options)[0]


def prepare_sizes(
    spec: DatasetSpec,
    source: Path | None,
    data_dir: Path,
    *,
    sizes: Sequence[int],
    split: str = "",
    on_bad: str = "fail",
    overwrite: bool = False,
    limit: int = 0,
    processes: int = 0,
    mask_resize: str = RESIZES[0],
) -> list[PreparedDataset]:
    """Write `<data_dir>/<spec.name>/<size>-<split>/` for every size, each atomically.

    Called again it does nothing, as long as the table, the image files and the arguments are
    unchanged. Several processes may prepare the same set: one works, the others wait for it.

    Args:
      spec: spec of the data set.
      source: path of the raw data, as `spec.layout` says; None for a set that is drawn (it is
        drawn into `<data_dir>/raw/<name>`).
      data_dir: folder that holds the prepared sets.
      sizes: sides in pixels that the images are resized to, without keeping the aspect ratio.
      split: name of a split rule in `spec.splits`; empty: the first that the rows allow.
      on_bad: policy for images that are missing or cannot be decoded, one of `ON_BAD`. The split
        is drawn before they are left out, so that the others keep their place.
      overwrite: True to replace a set that was prepared from other data or with other arguments.
      limit: number of rows to take from the start of every split, for a smoke run; adds
        "-limit<n>" to the split's name. 0: all.
      processes: number of processes that decode and resize; 0: one per core, fewer for few
        images; 1: this one.
      mask_resize: way to resize masks, one of `masks.RESIZES`.

    Raises:
      UsageError: an argument is wrong.
      UserError: the raw data cannot be used (all faults are listed), the folder holds something
        else and `overwrite` is not set, or a process was killed.
    """
    _check_arguments(spec, source, sizes, on_bad, limit, processes, mask_resize)
    with _only_process(data_dir / spec.name):
        if source is None:
            assert spec.draw is not None
            source = data_dir / "raw" / spec.name
            source.parent.mkdir(exist_ok=True)
            spec.draw(source)
        raw = spec.read(source)
        if spec.ordinal and raw.label is not Label.INDEX:
            raise UsageError(
                f"{spec.name} has {raw.label.words}: only grades, one per image, can be ordinal."
            )
        task = find_task(raw)(raw.classes, spec.class_groups)
        metric = spec.metric or task.selects
        task.metric(metric)  # refuses one that the task does not have
        files = locate_files(raw)
        split, assignment = assign(spec, split, raw.examples)
        revised = revision(spec, split)
        split = limited(split, limit)
        rows = select_rows(raw, files, assignment, limit)
        folders = {size: data_dir / spec.name / f"{size}-{split}" for size in sizes}
        recipes = _recipes(spec, raw, rows, sizes, split, revised, limit, task.name, metric, on_bad)
        if raw.label.of_pixels:
            recipes = {size: {**r, "mask_resize": mask_resize} for size, r in recipes.items()}
        missing = {}
        for size, folder in folders.items():
            if folder.exists() and not overwrite:
                check_unchanged(
                    folder, recipes[size], rows, len(raw.classes), spec.channels, processes
                )
                shutil.rmtree(partial_folder(folder), ignore_errors=True)
            else:
                missing[size] = folder
        if missing:
            if on_bad == "fail":
                _check_files(raw, rows)
            build_folders(missing, spec, raw, rows, recipes, processes)
        return [open_folder(folder) for folder in folders.values()]


def find_task(raw: RawDataset) -> type[Task]:
    """Find the task that the labels of a raw data set are for."""
    return suitable(raw.label, raw.classes)


def _check_arguments(
    spec: DatasetSpec,
    source: Path | None,
    sizes: Sequence[int],
    on_bad: str,
    limit: int,
    processes: int,
    mask_resize: str,
) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", spec.name) or spec.name == "raw":
        raise UsageError(
            f"{spec.name!r} cannot be the name of a data set; expected lower-case letters, digits"
            " and underscores, a letter first (and not 'raw')."
        )
    for size in sizes:
        if not 1 <= size <= _MAX_SIZE:
            raise UsageError(f"size {size}: expected 1 to {_MAX_SIZE} pixels.")
    for name, number in (("limit", limit), ("processes", processes)):
        if number < 0:
            raise UsageError(f"{name} {number}: expected a positive number.")
    if on_bad not in ON_BAD:
        raise unknown_name("policy for bad images", on_bad, ON_BAD)
    if mask_resize not in RESIZES:
        raise unknown_name("way to resize masks", mask_resize, RESIZES)
    if source is None and not spec.synthetic:
        raise UsageError(f"{spec.name} needs --source: {spec.layout}.")
    if source is not None and not source.exists():
        raise UserError(f"{source} does not exist; expected {spec.layout}.")


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Hold the lock of one data set; the system frees it when the process ends in any way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(f"Waiting for another process that prepares {folder} ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recipes(
    spec: DatasetSpec,
    raw: RawDataset,
    rows: Sequence[Row],
    sizes: Sequence[int],
    split: str,
    split_revision: int,
    limit: int,
    task: str,
    metric: str,
    on_bad: str,
) -> dict[int, dict[str, Any]]:
    """Recipe of each size: everything that decides the prepared data, cheap to recompute."""
    table = raw.table.read_bytes() if raw.table.is_file() else None
    recipe = {
        "format": FORMAT,
        "name": spec.name,
        "label": raw.label,
        "task": task,
        "classes": list(raw.classes),
        "class_groups": {name: list(classes) for name, classes in spec.class_groups.items()},
        "ordinal": spec.ordinal,
        "channels": spec.channels,
        "split": split,
        "split_revision": split_revision,
        "limit": limit,
        "metric": metric,
        "given_mean": spec.mean and list(spec.mean),
        "given_std": spec.std and list(spec.std),
        "on_bad": on_bad,
        "table_sha256": table and hashlib.sha256(table).hexdigest(),
        "columns_sha256": lines_sha256(json.dumps(row.example.columns) for row in rows),
        "source_sha256": lines_sha256(json.dumps(row.identity) for row in rows),
    }
    return {size: recipe | {"size": size} for size in sizes}


def _check_files(raw: RawDataset, rows: Sequence[Row]) -> None:
    """Find missing files now, not after hours of decoding the others."""
    problems = Problems(raw.table)
    for row in rows:
        if row.bytes is None:
            problems.add(f"image file {fault_of_file(row.path) or 'is missing'}", row.place)
        for mask in row.masks:
            if mask.bytes is None:
                fault = fault_of_file(mask.path) or "is missing"
                problems.add(f"mask file {fault}", f"{row.example.where}: {mask.path}")
    problems.raise_if_any(MEND_OR_QUARANTINE)
