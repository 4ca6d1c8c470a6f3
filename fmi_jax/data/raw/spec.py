"""What a data set is before it is prepared: where its table and images lie, and how it is split."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fmi_jax.types import Task

SPLITS = ("train", "val", "test")
"""The parts of every data set, in the order in which they are written and shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawExample:
    """One row of a raw data set.

    Attributes:
      id: unique name of the image, shown in predictions and messages.
      path: the image file, relative to the image root of the data set.
      item: which image of the file, for files that hold many (HDF5); None: the only one.
      label: class index, or one 0/1 (or soft) value per class for a multi-label set.
      group: patient, lesion or study, where known; images of one group belong together.
      split: "train", "val" or "test" where the raw data decide it, else None.
      row: line of the table, 1-based and counting the header, for messages.
    """

    id: str
    path: str
    label: int | tuple[float, ...]
    item: int | None = None
    group: str | None = None
    split: str | None = None
    row: int | None = None

    @property
    def where(self) -> str:
        """How messages point at this row."""
        return f"row {self.row} ({self.id!r})" if self.row else repr(self.id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawDataset:
    """The raw data set as read from disk: its rows and where their images are.

    Attributes:
      table: the file that lists the rows, or the folder where folders are the list.
      image_root: where the paths of the rows start; no image may lie outside it.
      examples: the rows, in the order of the table.
      classes: name of each class.
      task: what a label means.
    """

    table: Path
    image_root: Path
    examples: Sequence[RawExample]
    classes: tuple[str, ...]
    task: Task


SplitFn = Callable[[Sequence[RawExample]], Mapping[str, Sequence[int]]]
"""Rows of each split ("train", "val", "test") as indices into the examples, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A named data set.

    Attributes:
      name: as in configs and folders ("aptos2019").
      read: reads and checks the raw table under the path the user names.
      channels: 3 for colour, 1 for grey.
      mean, std: the study's pixel statistics in 0..1, or None: computed from the train split
        at preparation.
      metric: validation metric that selects the best checkpoint (a key of `metrics.METRICS`),
        or empty: chosen by the task at preparation.
      splits: split functions by name; the first that the rows allow is the default.
      layout: what the raw folder must hold, shown in help and errors.
      citation, licence, url: where it comes from.
      draw: `(folder, count=...)` writes a small raw data set of this layout, drawn by a program;
        for demos and tests (`drawn.folder.drawn_folder` marks it as not real).
      synthetic: never real: `prepare` draws it itself when no source is given.
      class_groups: classes over which the metrics are averaged once more, by name: CheXpert's
        {"competition": (five of its fourteen classes)} adds `roc_auc_competition`.
    """

    name: str
    read: Callable[[Path], RawDataset]
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    metric: str
    splits: Mapping[str, SplitFn]
    layout: str
    citation: str
    licence: str
    url: str
    draw: Callable[..., None] | None = None
    synthetic: bool = False
    class_groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
