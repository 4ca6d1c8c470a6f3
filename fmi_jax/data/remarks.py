"""Remarks on a prepared data set: what makes results on it less sure than they look."""

import dataclasses
import itertools
import math

import numpy as np

from fmi_jax.data.labels import Label, disagree
from fmi_jax.data.masks import are_counted, pixel_counts
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset
from fmi_jax.drawing.wording import percent

FEW = 10
"""Images of a class below which what a split says of the class is mostly chance."""

FEW_GROUPS = 20
"""Patients, lesions or studies below which intervals of what they say are too narrow."""

_UNEQUAL = 10  # times as frequent as the rarest class: accuracy then mostly counts one class
_SIGMAS = 5  # by which the share of a class must differ between splits to be called different


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Images that are the same to the pixel once prepared, as the "split: id" of each.

    Attributes:
      across: images that are in more than one split.
      within: images that are in one split more than once, and in no other.
      disagreeing: number of sets of copies whose labels differ.
    """

    across: list[list[str]]
    within: list[list[str]]
    disagreeing: int


@dataclasses.dataclass(frozen=True)
class Groups:
    """Patients, lesions or studies, where the data name them.

    Attributes:
      counts: how many are in each split.
      shared: how many are in both of two splits.
      leaked: images of the second split whose group is in the first, too.
      names: names of the groups that are in more than one split.
    """

    counts: dict[str, int]
    shared: dict[tuple[str, str], int]
    leaked: dict[tuple[str, str], int]
    names: list[str]


def find_duplicates(dataset: PreparedDataset) -> Duplicates:
    """Images that occur more than once, as found at preparation."""
    manifest = dataset.manifest
    listed = [*manifest["duplicates_across_splits"], *manifest["duplicates_within_splits"]]
    labels = {
        (split, id_): label
        for split in dataset.info.counts
        if listed
        for id_, label in zip(dataset.ids(split), dataset.labels(split).tolist(), strict=True)
    }
    across, within, disagreeing = [], [], 0
    for images in listed:
        # A subset of the training images may lack some of them.
        found = [key for image in images if (key := (image["split"], image["id"])) in labels]
        if len(found) > 1:
            spread = len({split for split, _ in found}) > 1
            (across if spread else within).append([f"{split}: {id_}" for split, id_ in found])
            disagreeing += disagree([labels[key] for key in found])
    return Duplicates(across, within, disagreeing)


def find_groups(dataset: PreparedDataset) -> Groups | None:
    """How patients, lesions or studies are spread over the splits; None: the data name none."""
    groups = {split: dataset.groups(split) or [] for split in dataset.info.counts}
    if not any(groups.values()):
        return None
    members = {split: set(names) for split, names in groups.items()}
    pairs = list(itertools.combinations(groups, 2))
    shared = {(a, b): members[a] & members[b] for a, b in pairs}
    return Groups(
        counts={split: len(names) for split, names in members.items()},
        shared={pair: len(names) for pair, names in shared.items()},
        leaked={(a, b): sum(name in members[a] for name in groups[b]) for a, b in pairs},
        names=sorted(set().union(*shared.values())),
    )


def remarks_on(dataset: PreparedDataset) -> list[str]:
    """Remarks on a prepared data set or a subset of one, from its index and manifest alone."""
    return remarks(dataset, find_duplicates(dataset), find_groups(dataset))


def remarks(dataset: PreparedDataset, duplicates: Duplicates, groups: Groups | None) -> list[str]:
    """One sentence for each thing that makes results less sure than they look, worst first."""
    info = dataset.info
    leaked = groups.leaked if groups else {}
    found = [
        f"{_of(images, info.counts[second], second)} of a patient, lesion or study that is also in"
        f" {first}: results on {second} will look too good."
        for (first, second), images in leaked.items()
        if images
    ]
    across, left_out = len(duplicates.across), len(dataset.manifest["quarantined"])
    share = percent(left_out / (sum(info.counts.values()) + left_out))
    counted = {
        f"{_things(across, 'image')} in more than one split, the same to the pixel.": across,
        f"{_things(duplicates.disagreeing, 'duplicate')} labelled in more than one way.": (
            duplicates.disagreeing
        ),
        f"{_things(left_out, 'image')} left out as unusable ({share}).": left_out,
    }
    found += [remark for remark, count in counted.items() if count]
    if groups and (text := few_groups(groups.counts.get("test", 0), "test")):
        found.append(text)
    return [*found, *_on_classes(dataset)]


def few_groups(count: int, split: str) -> str:
    """Say that the images of a split are of fewer than `FEW_GROUPS` groups; empty if not."""
    if not 0 < count < FEW_GROUPS:
        return ""
    return (
        f"The images in {split} are of {count} patients, lesions or studies: with fewer than"
        f" {FEW_GROUPS}, intervals are too narrow."
    )


def few_images(info: DatasetInfo, split: str) -> str:
    """Name the classes with fewer than `FEW` images in a split, in a sentence; empty if none."""
    multilabel = info.label is not Label.INDEX
    few = np.asarray(info.class_counts[split])
    if multilabel:
        few = np.minimum(few, info.known_counts(split) - few)
    names = _named(info.classes, (few > 0) & (few < FEW), few)
    either = " with it, or without it," if multilabel else ""
    return f"Fewer than {FEW} images{either} in {split}: {names}." if names else ""


def _on_classes(dataset: PreparedDataset) -> list[str]:
    info, found = dataset.info, []
    if not info.classes:
        return ["Without labels: networks can be pre-trained on it, and none trained or tested."]
    multilabel = info.label is not Label.INDEX
    present = {split: np.asarray(counts) for split, counts in info.class_counts.items()}
    present = {split: counts for split, counts in present.items() if info.counts[split]}
    # That every mask has background is no remark.
    remarkable = np.arange(len(info.classes)) >= info.label.background
    for split, counts in present.items():
        every = (counts == info.known_counts(split)) & (counts > 0) & remarkable
        full = _named(info.classes, every)
        absent = _named(info.classes, counts == 0)
        if full:
            found.append(f"Every image in {split} is of: {full}.")
        if absent and (multilabel or not full):
            found.append(f"No image in {split} of: {absent}.")
        if split != "train" and (text := few_images(info, split)):
            found.append(text)
    if "train" not in present:
        return ["Without training images: only trained networks can be tested on it.", *found]
    train, total = present["train"], np.maximum(info.known_counts("train"), 1)
    most, least = int(train.argmax()), int(np.where(train > 0, train, np.inf).argmin())
    if train[most] > _UNEQUAL * train[least] > 0:
        found.append(
            f"In train, {info.classes[most]} is {train[most] / train[least]:.0f} times as frequent"
            f" as {info.classes[least]}."
        )
    for split in present:
        n = np.maximum(info.known_counts(split), 1)
        share = (present[split] + train) / (n + total)
        error = np.sqrt(share * (1 - share) * (1 / n + 1 / total))
        apart = np.abs(present[split] / n - train / total) > _SIGMAS * error
        if names := _named(info.classes, apart & (error > 0)):
            found.append(f"More or less frequent in {split} than in train, beyond chance: {names}.")
    if multilabel:
        labels = {split: dataset.labels(split)[:, info.label.background :] for split in present}
        none = sum(int((of_split <= 0).all(axis=1).sum()) for of_split in labels.values())
        of = "finding: their masks are empty" if info.label.of_pixels else "of the classes"
        if none:
            found.append(f"{_of(none, sum(info.counts.values()))} without any {of}.")
    if are_counted(dataset):
        lost = sum(
            ((dataset.labels(split) > 0) & (pixel_counts(dataset, split) == 0)).sum(axis=0)
            for split in present
        )
        if names := _named(info.classes, np.asarray(lost) > 0, np.asarray(lost)):
            found.append(
                f"Too small for {info.size} pixels, and in the mask of fewer images once prepared:"
                f" {names}."
            )
    return found


def _of(part: int, total: int, split: str = "") -> str:
    name = f"{split} images" if split else "images"
    return f"{part:,} of {total:,} {name} ({percent(part / total)}) {'is' if part == 1 else 'are'}"


def _things(count: int, name: str) -> str:
    return f"{count:,} {name} is" if count == 1 else f"{count:,} {name}s are"


def _named(classes: tuple[str, ...], chosen: np.ndarray, counts: np.ndarray | None = None) -> str:
    """The chosen classes in words, the first few of many."""
    shown = 8
    names = [
        classes[c] + (f" ({math.floor(counts[c]):,})" if counts is not None else "")
        for c in np.flatnonzero(chosen)
    ]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
