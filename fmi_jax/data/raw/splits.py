"""Split rules, which assign rows to train, validation and test, as functions of the rows alone."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from fmi_jax.data.raw.problems import SHOWN
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec, RawExample
from fmi_jax.errors import UsageError, unknown_name

FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
"""Shares of the splits that are drawn here, the same as the study's for APTOS2019."""

SEED = 42
"""Random seed of every drawn split, the same as the study's."""

Assignment = dict[str, list[int]]
"""Rows of each split as indices into the examples, in order."""


def upstream(examples: Sequence[RawExample], *, held_out: float = 0.3) -> Assignment:
    """Split by the study's own shuffle, to the row; it ignores classes and patients.

    The first rows of the shuffle are validation and test, half and half.

    Args:
      examples: rows, in the order of the study's table.
      held_out: share of validation and test together, 0.3 for APTOS2019 and 0.2 for ISIC2019.
    """
    order = list(range(len(examples)))
    random.Random(SEED).shuffle(order)
    held = int(len(order) * held_out)
    half = held // 2
    return {"train": order[held:], "val": order[:half], "test": order[half:held]}


def stratified(examples: Sequence[RawExample]) -> Assignment:
    """Split every class 70/15/15 (in a multi-label set, every combination of classes)."""
    return _deal(examples, [[i] for i in range(len(examples))])


def grouped(examples: Sequence[RawExample]) -> Assignment:
    """Split the images 70/15/15 with each group (patient, lesion) in one split, classes balanced.

    Raises:
      UsageError: a row has no group.
    """
    groups: dict[str, list[int]] = {}
    if without := [example.where for example in examples if not example.group]:
        raise UsageError(
            f"the split 'grouped' needs the group of every row; {len(without)} have none:"
            f" {', '.join(without[:SHOWN])}."
        )
    for i, example in enumerate(examples):
        groups.setdefault(str(example.group), []).append(i)
    return _deal(examples, list(groups.values()))


def official(examples: Sequence[RawExample]) -> Assignment:
    """Split by the table, which gives the split of each row.

    Raises:
      UsageError: a row's split is not train, val or test.
    """
    if wrong := [f"{e.where}: {e.split!r}" for e in examples if e.split not in SPLITS]:
        raise UsageError(
            f"the split 'official' needs {', '.join(SPLITS)} for every row;"
            f" {len(wrong)} have something else: {'; '.join(wrong[:SHOWN])}."
        )
    return {name: [i for i, e in enumerate(examples) if e.split == name] for name in SPLITS}


def assign(
    spec: DatasetSpec, split: str, examples: Sequence[RawExample]
) -> tuple[str, Mapping[str, Sequence[int]]]:
    """Apply a split rule; returns its name and the rows of each part.

    Args:
      spec: spec of the data set.
      split: name of a split rule in `spec.splits`; empty: the first that the rows allow
        ("official" needs a split column, "grouped" a group column).
      examples: rows of the data set.

    Raises:
      UsageError: there is no such split, the rows do not allow it, or it leaves a part empty.
    """
    if not split:
        possible = {
            "official": any(example.split for example in examples),
            "grouped": any(example.group for example in examples),
        }
        split = next(name for name in spec.splits if possible.get(name, True))
    if split not in spec.splits:
        raise unknown_name(f"split of {spec.name}", split, spec.splits)
    rows = spec.splits[split](examples)
    if empty := [name for name in SPLITS if not rows[name]]:
        raise UsageError(
            f"the split {split!r} of {spec.name} leaves {' and '.join(empty)} without an image"
            f" ({len(examples)} rows in all); expected some in each of {', '.join(SPLITS)}."
            f" Splits to choose from: {', '.join(spec.splits)}."
        )
    return split, rows


def _deal(examples: Sequence[RawExample], units: list[list[int]]) -> Assignment:
    """Deal units of rows, class by class, each to the split that is furthest behind.

    Going through the classes one after the other keeps the shares right in each of them. This
    works also for classes too rare to cut into three, which independent cuts would all round to
    train.
    """
    random.Random(SEED).shuffle(units)

    def stratum(unit: list[int]) -> Any:
        # A group counts as its highest class, which is the most severe in graded data.
        return max(examples[i].label for i in unit)

    rows: Assignment = {name: [] for name in SPLITS}
    dealt = 0
    for unit in sorted(units, key=stratum):
        dealt += len(unit)
        behind = max(SPLITS, key=lambda name: FRACTIONS[name] * dealt - len(rows[name]))
        rows[behind] += unit
    return {name: sorted(members) for name, members in rows.items()}
