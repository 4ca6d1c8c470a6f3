"""Encodes the labels of a table as class indices, or as one value per class."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from fmi_jax.data.labels import IGNORE, MOST_LAYERS, Label
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.table import TableRow
from fmi_jax.errors import UserError

_MISSING = ("nan", "NaN", "<NA>")  # not "None", which may well be a grade
_INTEGER = re.compile(r"-?\d+")

MASK_CLASSES = ("background", "foreground")
"""Classes of masks where the user names none."""


def encode_classes(
    values: Sequence[str], places: Sequence[str], classes: Sequence[str], problems: Problems
) -> tuple[list[int], tuple[str, ...], Label]:
    """Encode one class per image; returns the index of each, the class names and the form.

    Args:
      values: label of each row, as written: the name of a class or, if no name is a number, its
        index.
      places: description of each row for messages.
      classes: class names in order; empty: those that occur, in numeric or alphabetic order.
      problems: collects labels that are missing or outside the classes (their index is -1).

    Raises:
      UserError: there are fewer than two classes, a name is used twice, or it is not printable.
    """
    present = {value for value in values if value}
    if missing := {*_MISSING} & present - {*classes}:
        raise UserError(
            f"{problems.source}: the label {missing.pop()!r} stands for a missing value: expected"
            " a class for every row, or --classes with this name among them."
        )
    numbers = all(_INTEGER.fullmatch(value) for value in present)
    names = tuple(classes) or tuple(sorted(present, key=int if numbers else None))
    _check_classes(names, problems)
    index = {name: i for i, name in enumerate(names)}
    expected = ", ".join(names)
    if not any(_INTEGER.fullmatch(name) for name in names):
        index |= {str(i): i for i in range(len(names))}
        expected = f"0 to {len(names) - 1} or {expected}"
    labels = [index.get(value, -1) for value in values]
    problems.add(
        f"label outside the classes, expected {expected}",
        *(f"{p}: {v!r}" for p, v, label in zip(places, values, labels, strict=True) if label < 0),
    )
    return labels, names, Label.INDEX


def encode_class_lists(
    values: Sequence[str], places: Sequence[str], classes: Sequence[str], problems: Problems
) -> tuple[list[tuple[float, ...]], tuple[str, ...], Label]:
    """Encode any number of classes per image, written "a|b|c"; an empty field has none of them.

    Arguments and errors are those of `encode_classes`; labels are 0 or 1 for each class.
    """
    lists = [split_list(value) for value in values]
    names = tuple(classes) or tuple(sorted({name for names in lists for name in names}))
    _check_classes(names, problems)
    unknown = (
        f"{place}: {name!r}"
        for found, place in zip(lists, places, strict=True)
        for name in found
        if name not in names
    )
    problems.add(f"label outside the classes, expected some of {', '.join(names)}", *unknown)
    return [tuple(float(name in found) for name in names) for found in lists], names, Label.VECTOR


def encode_masks(
    masks: Sequence[Sequence[str]], classes: Sequence[str], problems: Problems
) -> tuple[list[int], tuple[str, ...], Label]:
    """Encode the mask files of each image: 1 if it has any, else 0; see `RawExample.label`.

    Raises:
      UserError: no image has a mask, or the classes are wrong as for `encode_classes`.
    """
    _check_classes(classes, problems)
    if len(classes) > IGNORE:
        raise UserError(f"{problems.source}: {len(classes)} classes; a mask has at most {IGNORE}.")
    if not any(masks):
        raise UserError(f"{problems.source}: no row names a mask.")
    return [int(bool(files)) for files in masks], tuple(classes), Label.MAP


def encode_layers(
    masks: Sequence[Mapping[str, Sequence[str]]], classes: Sequence[str], problems: Problems
) -> tuple[list[tuple[float, ...]], tuple[str, ...], Label]:
    """Encode the mask files of each class of each image: 1 for each class that has any, else 0.

    Raises:
      UserError: no image has a mask, or the classes are too many or wrong as for `encode_classes`.
    """
    _check_classes(classes, problems)
    if len(classes) > MOST_LAYERS:
        raise UserError(
            f"{problems.source}: {len(classes)} classes; masks that overlap have at most"
            f" {MOST_LAYERS}."
        )
    labels = [tuple(float(bool(files[name])) for name in classes) for files in masks]
    if not any(map(any, labels)):
        raise UserError(f"{problems.source}: no row names a mask.")
    return labels, tuple(classes), Label.LAYERS


def split_list(value: str) -> tuple[str, ...]:
    """Split a field "a|b|c"; blanks around a part are removed, and empty parts left out."""
    return tuple(part.strip() for part in value.split("|") if part.strip())


def encode_columns(
    rows: Sequence[TableRow], columns: Sequence[str], problems: Problems
) -> tuple[list[tuple[float, ...]], tuple[str, ...], Label]:
    """Encode one column per class, each with a value from 0 to 1."""
    _check_classes(columns, problems)

    def value(row: TableRow, column: str) -> float:
        try:
            number = float(row.fields[column])
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1:
            problems.add(
                "label outside 0 to 1", f"row {row.line}, {column}: {row.fields[column]!r}"
            )
        return number

    labels = [tuple(value(row, column) for column in columns) for row in rows]
    return labels, tuple(columns), Label.VECTOR


def _check_classes(names: Sequence[str], problems: Problems) -> None:
    if len(set(names)) != len(names):
        raise UserError(f"{problems.source}: a class is named twice in {', '.join(names)}.")
    if len({unicodedata.normalize("NFC", name) for name in names}) != len(names):
        raise UserError(
            f"{problems.source}: two classes look alike and are written with different characters"
            f" (composed and decomposed accents) in {', '.join(map(ascii, names))}."
        )
    if unprintable := [name for name in names if not name.isprintable()]:
        raise UserError(f"{problems.source}: {unprintable[0]!r} cannot be the name of a class.")
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise UserError(f"{problems.source}: expected two or more classes, found {found}.")
