"""The folder of a prepared data set, put together from finished shards."""

import collections
import hashlib
import importlib.metadata
import itertools
import json
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fmi_jax import atomic
from fmi_jax.data.boxes import BOXES, to_text
from fmi_jax.data.labels import Label
from fmi_jax.data.masks import PIXELS
from fmi_jax.data.prepared import (
    COLUMN,
    INDEX,
    INDEX_COLUMNS,
    MANIFEST,
    lines_sha256,
    manifest_sha256,
)
from fmi_jax.data.preparing.selection import Row
from fmi_jax.data.preparing.shard import Seen, Shard, features_of
from fmi_jax.data.raw.drawn.folder import is_drawn
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec, RawDataset
from fmi_jax.errors import UserError


def versions() -> dict[str, str]:
    """Versions of all packages that influence the bytes."""
    names = ("fmi_jax", "numpy", "pillow", "pydicom", "h5py", "tensorflow-datasets", "array_record")
    return {name: importlib.metadata.version(name) for name in names}


def write_folder(
    folder: Path,
    spec: DatasetSpec,
    raw: RawDataset,
    shards: Sequence[Shard],
    recipe: Mapping[str, Any],
) -> str:
    """Put the shards of one size into the empty `folder`, and write index and manifest.

    Args:
      folder: empty folder, which nobody reads before it is complete.
      spec, raw: data set and its rows.
      shards: shards in the order of the splits and their rows.
      recipe: part of the manifest that is known beforehand.

    Returns:
      The checksum of the manifest.

    Raises:
      UserError: in some channel the training images are all of one value; nothing is written then.
    """
    mean, std = (spec.mean, spec.std) if spec.mean else _statistics(shards, raw.table)
    columns = list(dict.fromkeys(name for row, _ in _seen(shards) for name in row.example.columns))
    index = _index_csv(shards, columns)
    manifest = {
        **recipe,
        "mean": mean,
        "std": std,
        "synthetic": is_drawn(raw.table),
        "columns": columns,
        **_summary(shards, len(raw.classes), raw.label),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "citation": spec.citation,
        "licence": spec.licence,
        "url": spec.url,
        "versions": versions(),
    }
    _place_records(folder, spec, raw, shards, recipe)
    (folder / INDEX).write_bytes(index)
    manifest["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = json.loads(json.dumps(manifest))
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest["sha256"]


def _place_records(
    folder: Path,
    spec: DatasetSpec,
    raw: RawDataset,
    shards: Sequence[Shard],
    recipe: Mapping[str, Any],
) -> None:
    """Give the shards the names and the metadata of a TFDS data set."""
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=spec.name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(folder),
            module_name="",
            config_name=f"{recipe['size']}-{recipe['split']}",
        ),
        description=f"{spec.name}, prepared by fmi_jax",
        features=features_of(recipe["size"], spec.channels, raw.classes, raw.label),
        homepage=spec.url,
        citation=spec.citation,
        license=spec.licence,
    )
    info.set_file_format("array_record")
    splits = []
    for split in dict.fromkeys(shard.split for shard in shards):
        template = tfds.core.ShardedFileTemplate(
            dataset_name=spec.name,
            data_dir=tfds.core.Path(folder),
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        )
        full = [shard for shard in shards if shard.split == split and shard.note.records]
        for i, shard in enumerate(full):
            _place(shard.file, Path(template.sharded_filepath(shard_index=i, num_shards=None)))
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.note.records for shard in full],
                num_bytes=sum(shard.note.record_bytes for shard in full),
                filename_template=template,
            )
        )
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(folder)


def _place(file: Path, target: Path) -> None:
    """Link a finished file to its target, so that a run killed here need not write it again."""
    try:
        os.link(file, target)
    except OSError:  # the file system has no links
        file.rename(target)


def _seen(shards: Sequence[Shard]) -> Iterable[tuple[Row, Seen]]:
    """The rows that have an image, and what was seen of it."""
    for shard in shards:
        for row, image in zip(shard.rows, shard.note.images, strict=True):
            if isinstance(image, Seen):
                yield row, image


def _label(row: Row, image: Seen) -> int | tuple[float, ...]:
    """Label of a whole image; `Label.array` stacks them."""
    return row.example.label if image.present is None else image.present


def _label_json(row: Row, image: Seen) -> str:
    """Label as JSON, which has null for NaN."""
    label = _label(row, image)
    if isinstance(label, int):
        return json.dumps(label)
    return json.dumps([None if math.isnan(value) else value for value in label])


def _index_csv(shards: Sequence[Shard], columns: Sequence[str]) -> bytes:
    """The index, one line per image; with boxes and with pixels of masks if any image has some."""
    with_boxes = any(row.example.boxes for row, _ in _seen(shards))
    with_masks = any(image.pixels for _, image in _seen(shards))
    lines = (
        (row.split, row.example.id, _label_json(row, image), row.example.group or "",
         row.example.path, image.file_sha256, image.width, image.height,
         *([to_text(row.example.boxes)] if with_boxes else ()),
         *([json.dumps(image.pixels)] if with_masks else ()),
         *(row.example.columns.get(name, "") for name in columns))
        for row, image in _seen(shards)
    )  # fmt: skip
    own = ((BOXES, with_boxes), (PIXELS, with_masks))
    further = (*(name for name, there in own if there), *(COLUMN + name for name in columns))
    return atomic.csv_bytes([(*INDEX_COLUMNS, *further), *lines])


def _summary(shards: Sequence[Shard], num_classes: int, form: Label) -> dict[str, Any]:
    """The part of the manifest that tells of the images."""
    seen = list(_seen(shards))
    class_counts, unknown_counts = (
        {split: np.zeros(num_classes) for split in SPLITS} for _ in range(2)
    )
    groups: dict[str, dict[str, None]] = collections.defaultdict(dict)  # an ordered set of splits
    same_pixels: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
    for row, image in seen:
        label = _label(row, image)
        if isinstance(label, int):
            class_counts[row.split][label] += 1
        else:
            class_counts[row.split] += np.nan_to_num(label)
            unknown_counts[row.split] += np.isnan(label)
        if row.example.group:
            groups[row.example.group][row.split] = None
        same_pixels[image.pixels_sha256].append({"split": row.split, "id": row.example.id})
    same = [entries for entries in same_pixels.values() if len(entries) > 1]
    spread = [len({x["split"] for x in entries}) > 1 for entries in same]
    unknown = {split: n.tolist() for split, n in unknown_counts.items()}
    boxed = {
        split: sum(r.split == split and r.example.boxes != () for r, _ in seen) for split in SPLITS
    }
    masks = [(row.split, image.present[form.background :]) for row, image in seen if image.present]
    empty = {split: sum(s == split and not any(found) for s, found in masks) for split in SPLITS}
    return {
        "counts": {split: sum(row.split == split for row, _ in seen) for split in SPLITS},
        "class_counts": {split: n.tolist() for split, n in class_counts.items()},
        **({"unknown_counts": unknown} if any(map(any, unknown.values())) else {}),
        **({"with_boxes": boxed} if any(boxed.values()) else {}),
        **({"empty_masks": empty} if form.of_pixels else {}),
        "group_counts": {split: sum(split in s for s in groups.values()) for split in SPLITS},
        "groups_across_splits": {g: sorted(s) for g, s in groups.items() if len(s) > 1},
        "duplicates_across_splits": list(itertools.compress(same, spread)),
        "duplicates_within_splits": list(itertools.compress(same, map(operator.not_, spread))),
        "quarantined": [
            {"split": row.split, "id": row.example.id, "reason": image}
            for shard in shards
            for row, image in zip(shard.rows, shard.note.images, strict=True)
            if isinstance(image, str)
        ],
        "split_sha256": lines_sha256(f"{row.split},{row.example.id}" for row, _ in seen),
        "files_sha256": lines_sha256(image.file_sha256 for _, image in seen),
    }


def _statistics(
    shards: Sequence[Shard], table: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the training images, in 0..1; () without any."""
    training = [shard.note.histogram for shard in shards if shard.split == "train"]
    if not training:
        return (), ()
    histogram = np.sum(training, axis=0)
    values = np.arange(256) / 255
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = [math.sqrt(w @ np.square(values - m)) for w, m in zip(weights, mean, strict=True)]
    if min(std) < 1e-6:
        raise UserError(f"{table}: every training image is the same plain colour in a channel.")
    return tuple(mean.tolist()), tuple(std)
