"""Split rules, which assign rows to train, validation and test, as functions of the rows alone."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from fmi_jax.data.raw.balance import deal
from fmi_jax.data.raw.problems import SHOWN
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec, RawExample
from fmi_jax.errors import UsageError, unknown_name

FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
"""Shares of the splits that are drawn here, the same as the study's for APTOS2019."""

SEED = 42
"""Random seed of every drawn split, the same as the study's."""

Assignment = dict[str, list[int]]
"""Rows of each split as indices into the examples, in order."""

_Rule = TypeVar("_Rule", bound=Callable[..., Any])


def revised(number: int) -> Callable[[_Rule], _Rule]:
    """Decorate a split rule that no longer divides rows as it did; `revision` tells the number."""

    def mark(rule: _Rule) -> _Rule:
        vars(rule)["revision"] = number
        return rule

    return mark


def revision(spec: DatasetSpec, split: str) -> int:
    """Number of the revision of a split rule of a data set; 1: it has always been this one."""
    return getattr(spec.splits[split], "revision", 1)


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
    order = list(range(len(examples)))
    random.Random(SEED).shuffle(order)
    order.sort(key=lambda i: examples[i].label)
    # Each row goes to the split that is furthest behind, class by class. This works also for
    # classes too rare to cut into three, which independent cuts would all round to train.
    rows: Assignment = {name: [] for name in SPLITS}
    for dealt, i in enumerate(order, start=1):
        behind = max(SPLITS, key=lambda name: FRACTIONS[name] * dealt - len(rows[name]))
        rows[behind].append(i)
    return {name: sorted(members) for name, members in rows.items()}


@revised(2)
def grouped(examples: Sequence[RawExample]) -> Assignment:
    """Split the images 70/15/15 with each group (patient, lesion) in one split, classes balanced.

    Groups are dealt so that each class is divided 70/15/15, too, as evenly as they allow
    (`balance.Unevenness`). In revision 1 a group counted as one of its highest class.

    Raises:
      UsageError: a row has no group.
    """
    if without := [example.where for example in examples if not example.group]:
        raise UsageError(
            f"the split 'grouped' needs the group of every row; {len(without)} have none:"
            f" {', '.join(without[:SHOWN])}."
        )
    names, group_of = np.unique([str(example.group) for example in examples], return_inverse=True)
    dealing = deal(class_counts(examples, group_of, len(names)), tuple(FRACTIONS.values()))
    split_of = dealing[group_of]
    return {name: np.flatnonzero(split_of == i).tolist() for i, name in enumerate(SPLITS)}


def class_counts(
    examples: Sequence[RawExample], group_of: Int[np.ndarray, " n"], groups: int
) -> Float[np.ndarray, "g k"]:
    """Count the images of each class in each group, and in a last column those of any class.

    Args:
      examples: `n` rows.
      group_of: index of each row's group.
      groups: number of groups.
    """
    labels = np.array([example.label for example in examples])
    if labels.ndim == 1:
        labels = np.eye(labels.max() + 1)[labels]
    counts = np.zeros((groups, labels.shape[1] + 1))
    known = np.nan_to_num(labels)  # a label that is not known (NaN) is of no class
    np.add.at(counts, group_of, np.column_stack([known, np.ones(len(labels))]))
    return counts


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


def official_test(examples: Sequence[RawExample]) -> Assignment:
    """Split as `official`; without validation images there, they are 15% of the training images.

    They are drawn with the classes balanced, as in "stratified".

    Raises:
      UsageError: a row's split is not train, val or test.
    """
    rows = official(examples)
    if rows["val"]:
        return rows
    train = rows["train"]
    drawn = stratified([examples[i] for i in train])
    return {
        "train": sorted(train[i] for i in (*drawn["train"], *drawn["test"])),
        "val": [train[i] for i in drawn["val"]],
        "test": rows["test"],
    }


def all_train(examples: Sequence[RawExample]) -> Assignment:
    """Put every row into train: images without labels, on which nothing can be tested."""
    return {"train": list(range(len(examples))), "val": [], "test": []}


def all_test(examples: Sequence[RawExample]) -> Assignment:
    """Put every row into test: data from elsewhere, on which a trained network is tested."""
    return {"train": [], "val": [], "test": list(range(len(examples)))}


def assign(
    spec: DatasetSpec, split: str, examples: Sequence[RawExample]
) -> tuple[str, Mapping[str, Sequence[int]]]:
    """Apply a split rule; returns its name and the rows of each part.

    Args:
      spec: spec of the data set.
      split: name of a split rule in `spec.splits`; empty: the first that the rows allow
        ("official" needs a split column, "train" rows without labels, "grouped" a group column).
      examples: rows of the data set.

    Raises:
      UsageError: there is no such split, the rows do not allow it, or it leaves a part empty and is
        not for testing alone. Without labels it must have training images, and nothing else.
    """
    labelled = any(example.label != () for example in examples)
    if not split:
        possible = {
            "official": any(example.split for example in examples),
            "train": not labelled,
            "grouped": any(example.group for example in examples),
        }
        split = next(name for name in spec.splits if possible.get(name, True))
    if split not in spec.splits:
        raise unknown_name(f"split of {spec.name}", split, spec.splits)
    rows = spec.splits[split](examples)
    empty = [name for name in SPLITS if not rows[name]]
    if not labelled:
        if not rows["train"]:
            raise UsageError(
                f"the split {split!r} of {spec.name} leaves train without an image, and without"
                " labels the others can only be trained on: expected the split 'train'."
            )
        return split, rows
    if empty and empty != ["train", "val"]:
        raise UsageError(
            f"the split {split!r} of {spec.name} leaves {' and '.join(empty)} without an image"
            f" ({len(examples)} rows in all); expected some in each of {', '.join(SPLITS)}, or"
            " in test alone."
            f" Splits to choose from: {', '.join(spec.splits)}."
        )
    return split, rows
