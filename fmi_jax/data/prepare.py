"""From a raw data set to a prepared one: every row checked, every image decoded once."""

import dataclasses
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fmi_jax.data.prepared import FORMAT, PreparedDataset, open_dataset, open_folder
from fmi_jax.data.problems import Problems
from fmi_jax.data.registry import DATASETS
from fmi_jax.data.scan import locate_images
from fmi_jax.data.spec import DatasetSpec, RawDataset
from fmi_jax.data.splits import assign
from fmi_jax.data.write import MEND_OR_QUARANTINE, write_folder
from fmi_jax.errors import UsageError, UserError, unknown_name
from fmi_jax.metrics import check_metric
from fmi_jax.types import Task

ON_BAD = ("fail", "quarantine")
"""What to do with images that cannot be used: refuse the data set, or leave them out by name."""

_DEFAULT_METRIC = {
    Task.BINARY: "roc_auc",
    Task.MULTICLASS: "balanced_accuracy",
    Task.MULTILABEL: "roc_auc",
}
_MAX_SIZE = 4096


def prepare(
    spec: DatasetSpec,
    source: Path | None,
    data_dir: Path,
    *,
    size: int = 256,
    split: str = "",
    on_bad: str = "fail",
    overwrite: bool = False,
) -> PreparedDataset:
    """Write `<data_dir>/<spec.name>/<size>-<split>/`, or nothing at all.

    The folder appears at once, when everything is in it. Called again it does nothing, as long as
    the table, the sizes of the image files and the arguments are what they were. Several
    processes may prepare the same set: one works, the others wait for it.

    Args:
      spec: the data set.
      source: the raw data, as `spec.layout` says; None for a set that is drawn (it is drawn into
        `<data_dir>/raw/<name>`).
      data_dir: folder that holds the prepared sets.
      size: side in pixels that the images are resized to, without keeping the aspect ratio.
      split: one of `spec.splits`; empty: the first that the rows allow.
      on_bad: what becomes of images that are missing or cannot be decoded, one of `ON_BAD`.
        The split is drawn before they are left out, so that the others stay where they were.
      overwrite: replace what was prepared from other data or with other arguments.

    Raises:
      UsageError: an argument is wrong.
      UserError: the raw data cannot be used (all faults are listed), or the folder holds
        something else and `overwrite` is not set.
    """
    _check_arguments(spec, source, size, on_bad)
    with _only_process(data_dir / spec.name):
        if source is None:
            assert spec.draw is not None
            source = data_dir / "raw" / spec.name
            source.parent.mkdir(exist_ok=True)
            spec.draw(source)
        raw = spec.read(source)
        metric = spec.metric or _DEFAULT_METRIC[raw.task]
        check_metric(metric, raw.task)
        paths = locate_images(raw)
        split, rows = assign(spec, split, raw.examples)
        recipe = _recipe(spec, raw, paths, size, split, metric, on_bad)
        folder = data_dir / spec.name / f"{size}-{split}"
        if folder.exists() and not overwrite:
            return _unchanged(folder, recipe)
        if on_bad == "fail":
            _check_files(raw, paths)
        _check_space(data_dir, len(raw.examples) * size * size * spec.channels)

        partial = folder.with_name(f".{folder.name}.partial")
        old = folder.with_name(f".{folder.name}.old")
        _remove(partial, old)  # of a run that was killed
        partial.mkdir()
        try:
            write_folder(partial, spec, raw, paths, rows, recipe)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        finally:
            _remove(partial, old)
        return open_folder(folder)


def open_or_draw(data_dir: Path, name: str, size: int, split: str = "") -> PreparedDataset:
    """Open a prepared data set; one that is drawn is first prepared if need be.

    Arguments and errors as of `open_dataset`.
    """
    if name in DATASETS and DATASETS[name].synthetic:
        return prepare(DATASETS[name], None, data_dir, size=size, split=split)
    return open_dataset(data_dir, name, size, split)


def _check_arguments(spec: DatasetSpec, source: Path | None, size: int, on_bad: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", spec.name) or spec.name == "raw":
        raise UsageError(
            f"{spec.name!r} cannot be the name of a data set; expected lower-case letters, digits"
            " and underscores, a letter first (and not 'raw')."
        )
    if not 1 <= size <= _MAX_SIZE:
        raise UsageError(f"size {size}: expected 1 to {_MAX_SIZE} pixels.")
    if on_bad not in ON_BAD:
        raise unknown_name("policy for bad images", on_bad, ON_BAD)
    if source is None and not spec.synthetic:
        raise UsageError(f"{spec.name} needs --source: {spec.layout}.")
    if source is not None and not source.exists():
        raise UserError(f"{source} does not exist; expected {spec.layout}.")


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Hold the lock of one data set; the system frees it when the process ends, however it does."""
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


def _recipe(
    spec: DatasetSpec,
    raw: RawDataset,
    paths: Sequence[Path],
    size: int,
    split: str,
    metric: str,
    on_bad: str,
) -> dict[str, Any]:
    """All that decides what is prepared, cheap enough to be computed anew each time."""
    digest = hashlib.sha256()
    for example, path in zip(raw.examples, paths, strict=True):
        bytes_in_file = path.stat().st_size if path.is_file() else None
        row = [*dataclasses.astuple(example), bytes_in_file]
        digest.update((json.dumps(row) + "\n").encode())
    table = raw.table.read_bytes() if raw.table.is_file() else None
    return {
        "format": FORMAT,
        "name": spec.name,
        "task": raw.task,
        "classes": list(raw.classes),
        "channels": spec.channels,
        "size": size,
        "split": split,
        "metric": metric,
        "given_mean": spec.mean and list(spec.mean),
        "given_std": spec.std and list(spec.std),
        "on_bad": on_bad,
        "table_sha256": table and hashlib.sha256(table).hexdigest(),
        "source_sha256": digest.hexdigest(),
    }


def _unchanged(folder: Path, recipe: Mapping[str, Any]) -> PreparedDataset:
    dataset = open_folder(folder)
    old = dataset.manifest
    changed = [name for name, value in recipe.items() if old.get(name) != value]
    if changed:
        what = ", ".join(name.removesuffix("_sha256") for name in changed)
        raise UserError(
            f"{folder} was prepared from something else (differs in: {what});"
            " expected the same data and options, or --overwrite to replace it."
        )
    return dataset


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _check_files(raw: RawDataset, paths: Sequence[Path]) -> None:
    """Find missing files now, not after hours of decoding the others."""
    problems = Problems(raw.table)
    for example, path in zip(raw.examples, paths, strict=True):
        if not path.is_file():
            problems.add("image file is missing", f"{example.where}: {path}")
    problems.raise_if_any(MEND_OR_QUARANTINE)


def _check_space(data_dir: Path, needed: int) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < needed * 1.05:
        raise UserError(
            f"{data_dir} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed."
        )
