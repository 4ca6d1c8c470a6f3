"""Reader of the user's own images, listed in a CSV: `path,label[,id,split,group]`."""

import functools
from pathlib import Path

from fmi_jax.data.raw.labels import encode_class_lists, encode_classes, encode_columns
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import grouped, official, stratified
from fmi_jax.data.raw.table import read_table


def csv_spec(
    name: str = "csv",
    *,
    image_root: Path | None = None,
    label_columns: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
    channels: int = 3,
    metric: str = "",
) -> DatasetSpec:
    """Make the spec of a data set that is one CSV table and the images it names.

    Args:
      name: name for the data set.
      image_root: folder that the column `path` starts from; None: the folder of the table.
      label_columns: columns with one value from 0 to 1 per class (multi-label), in place of the
        column `label`. In `label`, several classes of one image are written "a|b".
      classes: class names in order; empty: those that occur, in numeric or alphabetic order.
      channels: 3 for colour, 1 for grey.
      metric: validation metric that selects the best checkpoint; empty: by the task.
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
        splits={"official": official, "grouped": grouped, "stratified": stratified},
        layout="a CSV table with the columns path,label and, if you like, id, split and group",
        citation="",
        licence="",
        url="",
    )


def read(
    source: Path,
    *,
    image_root: Path | None = None,
    label_columns: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> RawDataset:
    """Read the table; see `csv_spec` for the arguments. Without an id, an image's id is its path.

    Raises:
      UserError: the table is missing, lacks a column or has a label outside the classes.
    """
    columns, rows = read_table(source, required=("path", *(label_columns or ("label",))))
    problems = Problems(source)
    if label_columns:
        labels, names, form = encode_columns(rows, label_columns, problems)
    else:
        values = [row.fields["label"] for row in rows]
        places = [f"row {row.line} ({row.fields['path']!r})" for row in rows]
        encode = encode_class_lists if any("|" in v for v in values) else encode_classes
        labels, names, form = encode(values, places, classes, problems)
    problems.raise_if_any()

    examples = [
        RawExample(
            id=row.fields["id"] if "id" in columns else row.fields["path"],
            path=row.fields["path"],
            label=label,
            group=row.fields.get("group") or None,
            split=row.fields.get("split") or None,
            row=row.line,
        )
        for row, label in zip(rows, labels, strict=True)
    ]
    return RawDataset(
        table=source,
        image_root=image_root or source.parent,
        examples=examples,
        classes=names,
        label=form,
    )
