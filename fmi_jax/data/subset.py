"""Subsets of the training images: a fraction of them, or a few of each class.

The choice of images is a pure function of their ids, their labels and a seed. Every image has a
place in an order that does not depend on the size of the subset. So a smaller subset is part of a
larger one of the same seed, and images added to a data set later do not move the others.
"""

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from fmi_jax.data.labels import Label, class_membership
from fmi_jax.data.prepared import PreparedDataset, lines_sha256
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.errors import UsageError


def training_subset(
    dataset: PreparedDataset, *, fraction: float = 1.0, shots: int = 0, seed: int = 0
) -> PreparedDataset:
    """Restrict `dataset` to a subset of its training images; validation and test do not change.

    Counts and `split_sha256` of its description are those of the subset. `mean` and `std` stay
    those of all training images, so that an image is the same network input in every subset.

    Args:
      dataset: data set from `open_dataset`.
      fraction: share of the training images, more than 0 and at most 1: `fraction_rows`.
      shots: images of each class, instead of a fraction: `few_shot_rows`. 0: all.
      seed: random seed of the draw.

    Raises:
      UsageError: there are no training images, both are set, a class has too few images, or `shots`
        is set for a multi-label set or one with masks.
    """
    info = dataset.info
    if not info.counts["train"]:
        raise UsageError(
            f"data set {info.name!r} (split {info.split!r}) has no training images: only a trained"
            " network can be tested on it; expected a data set with training images."
        )
    if fraction == 1 and not shots:
        return dataset
    if fraction != 1 and shots:
        raise UsageError(
            f"data.fraction={fraction} and data.shots={shots} are both set: expected at most one."
        )
    ids, labels = dataset.ids("train"), dataset.labels("train")
    if shots and info.label is not Label.INDEX:
        raise UsageError(
            f"data.shots={shots}: the labels of {info.name} are {info.label.words}, so there is no"
            " number of images of each class; use data.fraction."
        )
    rows = (
        few_shot_rows(ids, labels, info.classes, shots, seed)
        if shots
        else fraction_rows(ids, labels, fraction, seed)
    )
    groups = dataset.groups("train")
    sums = class_membership(labels[rows], len(info.classes))
    kept = {split: dataset.ids(split) for split in SPLITS} | {"train": [ids[i] for i in rows]}
    info = dataclasses.replace(
        info,
        counts={**info.counts, "train": len(rows)},
        class_counts={**info.class_counts, "train": tuple(np.nansum(sums, axis=0).tolist())},
        unknown_counts={**info.unknown_counts, "train": tuple(np.isnan(sums).sum(axis=0).tolist())}
        if info.unknown_counts
        else {},
        group_counts={**info.group_counts, "train": len({groups[i] for i in rows})}
        if groups
        else info.group_counts,
        split_sha256=lines_sha256(f"{split},{id}" for split in SPLITS for id in kept[split]),
    )
    return dataclasses.replace(dataset, info=info, train_rows=tuple(rows))


def fraction_rows(ids: Sequence[str], labels: np.ndarray, fraction: float, seed: int) -> list[int]:
    """Select the rows of a stratified fraction, in order.

    Every class (in a multi-label set: every combination of classes, those not known told from
    those absent) keeps its share up to
    rounding; the total is `fraction` of all rows, rounded. A class never loses its last image; a
    combination of classes may.

    Raises:
      UsageError: fewer rows than classes would be left.
    """
    count = round(fraction * len(ids))
    strata = _strata(ids, labels, seed)
    combined = labels.ndim > 1
    least = 1 if combined else len(strata)
    if count < least:
        raise UsageError(
            f"data.fraction={fraction} keeps {count} of {len(ids)} training images: expected at"
            f" least {least}, one of each class; nearest valid: {_at_least(least, len(ids))}."
        )
    # The first `count` images of one order of all images are taken. Image j of the n of a class
    # comes at the fraction (j + 1/2) / n, so that classes grow alike; the first comes at once. Most
    # combinations of classes are too rare for that: each has its own random start instead of 1/2.
    order = []
    for label, rows in strata.items():
        start = _uniform(seed, f"combination {label}") if combined else 0.5
        places = [(j + start) / len(rows) for j in range(len(rows))]
        if not combined:
            places[0] = 0.0
        order += [(place, *key) for place, key in zip(places, rows, strict=True)]
    return sorted(row for *_, row in sorted(order)[:count])


def few_shot_rows(
    ids: Sequence[str], labels: np.ndarray, classes: Sequence[str], shots: int, seed: int
) -> list[int]:
    """Select the rows of `shots` images of each class, in order; labels are class indices.

    Raises:
      UsageError: a class has fewer images.
    """
    strata = _strata(ids, labels, seed)
    held = {name: len(strata.get(i, ())) for i, name in enumerate(classes)}
    if few := {name: count for name, count in held.items() if count < shots}:
        shown = ", ".join(f"{name!r} has {count}" for name, count in few.items())
        raise UsageError(
            f"data.shots={shots}: not every class has that many training images ({shown});"
            f" expected at most {min(held.values())}."
        )
    return sorted(row for rows in strata.values() for _, row in rows[:shots])


def _strata(
    ids: Sequence[str], labels: np.ndarray, seed: int
) -> dict[Hashable, list[tuple[float, int]]]:
    """Place and row of the images of each label, in the order in which they are taken."""
    strata = defaultdict(list)
    for row, (id, label) in enumerate(zip(ids, labels.tolist(), strict=True)):
        key = label
        if isinstance(label, list):  # one NaN is not equal to another
            key = tuple(None if math.isnan(value) else value for value in label)
        strata[key].append((_uniform(seed, id), row))
    return {label: sorted(rows) for label, rows in strata.items()}


def _uniform(seed: int, name: str) -> float:
    """Number in 0..1 from a seed and a name, the same in every version of every library."""
    digest = hashlib.sha256(f"{seed},{name}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _at_least(count: int, total: int) -> float:
    """Smallest fraction of four digits that keeps `count` of `total`."""
    return next(f / 10_000 for f in range(1, 10_001) if round(f / 10_000 * total) >= count)
