"""Reader of the user's own images: a CSV with `path[,label or masks][,id,split,group]`."""

import functools
from collections.abc import Sequence
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.labels import (
    MASK_CLASSES,
    encode_class_lists,
    encode_classes,
    encode_columns,
    encode_layers,
    encode_masks,
    split_list,
)
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import all_test, all_train, grouped, official, stratified
from fmi_jax.data.raw.table import read_table
from fmi_jax.errors import UserError

COLUMNS = ("path", "label", "mask", "id", "split", "group")
"""Columns with a meaning; any other is kept as it is."""

LAYER = "mask_"
"""Prefix of the columns of masks that overlap, before the name of the class."""


def csv_spec(
    name: str = "csv",
    *,
    image_root: Path | None = None,
    label_columns: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
    channels: int = 3,
    metric: str = "",
    ordinal: bool = False,
) -> DatasetSpec:
    """Make the spec of a data set that is one CSV table and the images it names.

    Args:
      name: name for the data set.
      image_root: folder that the column `path` starts from; None: the folder of the table.
      label_columns: columns with one value from 0 to 1 per class (multi-label), in place of the
        column `label`. In `label`, several classes of one image are written "a|b".
      classes: class names in order; empty: those that occur, in numeric or alphabetic order. Of
        masks the first is the background; empty: `MASK_CLASSES`. Of masks that overlap none is;
        empty: those that have a column, in their order.
      channels: 3 for colour, 1 for grey.
      metric: validation metric that selects the best checkpoint; empty: by the task.
      ordinal: True if the classes are grades, in their order.
    """
    return DatasetSpec(
        name=name,
        read=functools.partial(
            read, image_root=image_root, label_columns=label_columns, classes=classes
        ),
        channels=channels,
        mean=None,
        std=None,
        metric=metric,
        splits={
            "official": official,
            "train": all_train,
            "grouped": grouped,
            "stratified": stratified,
            "all": all_test,
        },
        layout="a CSV table with the columns path,label (or path,mask, or path and mask_<class> for"
        " each class) and, if you like, id, split, group and any others; or with path and, if you"
        " like, id, split and group alone, without labels, for pre-training",
        citation="",
        licence="",
        url="",
        ordinal=ordinal,
    )


def read(
    source: Path,
    *,
    image_root: Path | None = None,
    label_columns: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> RawDataset:
    """Read the table; see `csv_spec` for the arguments. Without an id, an image's id is its path.

    The column `mask` names the mask file of an image; several, written "a|b", are united, and an
    empty field means that the whole image is background. Without it and without `label`, columns
    `mask_<class>` name the files of one class each, whose masks may overlap. Columns that are not
    in `COLUMNS` and not labels are kept as they are (`RawExample.columns`). A table without any of
    these, and without `label` and masks, is one of images without labels; with others, a label is
    missing.

    Raises:
      UserError: the table is missing, lacks a column, has a label outside the classes, has both
        `label` and `mask`, or has no labels for the classes that are named.
    """
    columns, rows = read_table(source, required=("path", *label_columns))
    masked = "mask" in columns and not label_columns
    if masked and "label" in columns:
        raise UserError(f"{source} has the columns 'label' and 'mask'; expected only one of them.")
    layered: tuple[str, ...] = ()
    if not (masked or label_columns or "label" in columns):
        layered = _layers(source, columns, classes)
    alone = {*columns} <= {"path", "id", "split", "group", ""}
    unlabelled = alone and not label_columns and not classes
    if not (masked or layered or unlabelled or label_columns or "label" in columns):
        raise UserError(
            f"{source} has no column 'label'; its columns are {', '.join(map(repr, columns))}."
            " Expected 'label' (or 'mask', or 'mask_<class>' for each class) among them, or, for"
            " images without labels, 'path' with 'id', 'split' and 'group' alone."
        )
    problems = Problems(source)
    masks: list[tuple[str, ...]] = [()] * len(rows)
    layers: list[tuple[int, ...]] = [()] * len(rows)
    if unlabelled:
        labels, names, form = [()] * len(rows), (), Label.NONE
    elif masked:
        masks = [split_list(row.fields["mask"]) for row in rows]
        labels, names, form = encode_masks(masks, classes or MASK_CLASSES, problems)
    elif layered:
        found = [{c: split_list(row.fields[LAYER + c]) for c in layered} for row in rows]
        labels, names, form = encode_layers(found, layered, problems)
        masks = [tuple(file for c in layered for file in files[c]) for files in found]
        layers = [tuple(i for i, c in enumerate(layered) for _ in files[c]) for files in found]
    elif label_columns:
        labels, names, form = encode_columns(rows, label_columns, problems)
    else:
        values = [row.fields["label"] for row in rows]
        places = [f"row {row.line} ({row.fields['path']!r})" for row in rows]
        encode = encode_class_lists if any("|" in v for v in values) else encode_classes
        labels, names, form = encode(values, places, classes, problems)
    problems.raise_if_any()
    known = {*COLUMNS, *label_columns, *(LAYER + name for name in layered), ""}
    kept = {name: name for name in columns if name not in known}

    return RawDataset(
        table=source,
        image_root=image_root or source.parent,
        examples=[
            RawExample(
                id=row.fields["id"] if "id" in columns else row.fields["path"],
                path=row.fields["path"],
                label=label,
                group=row.fields.get("group") or None,
                split=row.fields.get("split") or None,
                row=row.line,
                masks=files,
                layers=of_files,
                columns=row.kept(kept),
            )
            for row, label, files, of_files in zip(rows, labels, masks, layers, strict=True)
        ],
        classes=names,
        label=form,
    )


def _layers(source: Path, columns: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Find the classes that have a column of mask files: those that are named, or all."""
    found = [name.removeprefix(LAYER) for name in columns if name.startswith(LAYER)]
    if missing := [name for name in classes if found and name not in found]:
        raise UserError(
            f"{source} has no column {LAYER + missing[0]!r}; its columns of masks are"
            f" {', '.join(repr(LAYER + name) for name in found)}. Expected one for each class."
        )
    return tuple(classes) if found and classes else tuple(found)
