"""Check that a prepared data set is still what would be prepared now."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmi_jax import atomic
from fmi_jax.data.prepared import open_folder
from fmi_jax.data.preparing.reading import scan_images
from fmi_jax.data.preparing.selection import Row
from fmi_jax.data.raw.problems import SHOWN
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.errors import UserError


def check_unchanged(
    folder: Path,
    recipe: Mapping[str, Any],
    rows: Sequence[Row],
    num_classes: int,
    channels: int,
    processes: int,
) -> None:
    """Raise `UserError` if `folder` was prepared from something else than the recipe says."""
    dataset = open_folder(folder)
    if dataset.manifest["split_revision"] != recipe["split_revision"]:
        raise UserError(
            f"{folder} was divided by an earlier rule of the name {recipe['split']!r} (revision"
            f" {dataset.manifest['split_revision']}; now {recipe['split_revision']}). It can be"
            " used as it is, and runs on it go on. To divide the images anew, prepare into another"
            " --data-dir, or replace it with --overwrite: its results do not compare with new ones."
        )
    # What earlier formats did not write down is not known to differ.
    known = {name: value for name, value in recipe.items() if name in dataset.manifest}
    changed = [name for name, value in known.items() if dataset.manifest[name] != value]
    what = ", ".join(name.removesuffix("_sha256") for name in changed)
    touched = _touched(folder, dataset.info.manifest_sha256, rows)
    if not what and touched:
        found = scan_images(
            touched,
            num_classes=num_classes,
            channels=channels,
            description=f"{len(touched)} files were touched",
            processes=processes,
        )
        prepared = {
            image_id: sha256
            for split in SPLITS
            for image_id, sha256 in zip(dataset.ids(split), dataset.file_sha256(split), strict=True)
        }
        if other := [
            row.place
            for row, scanned in zip(touched, found, strict=True)
            if isinstance(scanned, UserError) or prepared.get(row.example.id) != scanned.sha256
        ]:
            what = f"the content of {len(other)} image file(s): {'; '.join(other[:SHOWN])}"
        else:
            write_stamps(folder, dataset.info.manifest_sha256, rows)
    if what:
        raise UserError(
            f"{folder} was prepared from something else (differs in: {what});"
            " expected the same data and options, or --overwrite to replace it."
        )


def write_stamps(folder: Path, manifest_sha256: str, rows: Sequence[Row]) -> None:
    """Store the times of change of the raw files beside the prepared folder.

    A time has no meaning on another machine, so it is not part of the prepared data. It only saves
    reading files that have not been touched; without it, all are read again.

    Args:
      folder: folder of the prepared data set.
      manifest_sha256: checksum of the manifest that was made from the rows.
      rows: rows of the data set.
    """
    values = {"manifest_sha256": manifest_sha256, "mtime_ns": [row.changed for row in rows]}
    atomic.write_bytes(_stamps(folder), json.dumps(values).encode())


def _touched(folder: Path, manifest_sha256: str, rows: Sequence[Row]) -> list[Row]:
    """List the rows whose files may have changed since `write_stamps`."""
    try:
        values = json.loads(_stamps(folder).read_text())
        known = values["mtime_ns"] if values["manifest_sha256"] == manifest_sha256 else []
    except (OSError, ValueError, KeyError, TypeError):
        known = []
    if len(known) != len(rows):
        return list(rows)
    return [row for row, then in zip(rows, known, strict=True) if row.changed != then]


def _stamps(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.stamps")
