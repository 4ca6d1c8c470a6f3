"""Raw data sets: the spec of a data set before it is prepared, and its rows once read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fmi_jax.data.boxes import Box
from fmi_jax.data.labels import Label

SPLITS = ("train", "val", "test")
"""Names of the parts of every data set, in the order in which they are written and shown."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet, by which the third study normalises the images of most data sets."""

_NO_COLUMNS: Mapping[str, str] = {}  # one for all rows: a set may have 300,000


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawExample:
    """One row of a raw data set.

    Attributes:
      id: unique name of the image, shown in predictions and messages.
      path: path of the image file, relative to the image root of the data set.
      item: index of the image in a file that holds many (HDF5); None: the file holds only one.
      label: class index, or one 0/1 (or soft) value per class for a multi-label set; for a set with
        masks 1 if the row tells of any foreground, else 0 (for each class, where masks overlap),
        which balances the splits; () without labels.
      group: patient, lesion or study, if known; images of one group belong together.
      split: "train", "val" or "test" if the raw data decide it, else None.
      row: line of the table, 1-based and counting the header, for messages.
      masks: paths of the mask files, relative to the image root; several are united, and without
        one and without `runs` the whole image is background.
      layers: class of each of `masks`, where masks overlap; none elsewhere.
      runs: start and length of each run of pixels of class 1, counted from 0 down the columns from
        left to right; united with `masks`.
      mask_size: width and height in pixels at which the masks were drawn; None: those of the image.
      boxes: boxes around findings; an image without one has no mask.
      columns: further facts about the image by name (sex, age, view ...), as the table writes them.
    """

    id: str
    path: str
    label: int | tuple[float, ...]
    item: int | None = None
    group: str | None = None
    split: str | None = None
    row: int | None = None
    masks: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    runs: tuple[tuple[int, int], ...] = ()
    mask_size: tuple[int, int] | None = None
    boxes: tuple[Box, ...] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=lambda: _NO_COLUMNS)

    @property
    def where(self) -> str:
        """Row and id, as shown in messages."""
        return f"row {self.row} ({self.id!r})" if self.row else repr(self.id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawDataset:
    """A raw data set as read from disk: its rows and the place of their images.

    Attributes:
      table: file that lists the rows, or the folder if folders are the list.
      image_root: folder that the paths of the rows start from; no image may lie outside it.
      examples: rows, in the order of the table.
      classes: name of each class; none without labels.
      label: form of the labels.
    """

    table: Path
    image_root: Path
    examples: Sequence[RawExample]
    classes: tuple[str, ...]
    label: Label


SplitFn = Callable[[Sequence[RawExample]], Mapping[str, Sequence[int]]]
"""Rows of each split ("train", "val", "test") as indices into the examples, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Spec of a named data set: how to read, split and describe it.

    Attributes:
      name: name in configs and folders ("aptos2019").
      read: function that reads and checks the raw table under the path the user names.
      channels: 3 for colour, 1 for grey.
      mean, std: the study's pixel statistics in 0..1, or None: computed from the train split
        at preparation.
      metric: validation metric that selects the best checkpoint (a metric of its task),
        or empty: chosen by the task at preparation.
      splits: split functions by name; the first that the rows allow is the default. Where there
        are groups it keeps them together.
      layout: required contents of the raw folder, shown in help and errors.
      citation, licence, url: source of the data.
      draw: function `(folder, count=...)` that writes a small raw data set of this layout, drawn by
        a program; for demos and tests (`drawn.folder.draw_once` marks it as not real).
      synthetic: True if it is never real: `prepare` draws it itself when no source is given.
      class_groups: classes over which the metrics are averaged once more, by name: CheXpert's
        {"competition": (five of its fourteen classes)} adds `roc_auc_competition`.
      ordinal: True if the classes are grades, in their order.
      notes: fact that a reader of results on a split must know, by name of the split.
      sizes: images in training, validation and test by name of the split, of the public download;
        about, where a split is drawn.
      read_boxes: `read` with the boxes around findings (`prepare --boxes`); None: it has none.
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
    ordinal: bool = False
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    read_boxes: Callable[[Path], RawDataset] | None = None
