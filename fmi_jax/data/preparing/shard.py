"""The unit of preparation: rows of one split at one size, written as one file of records.

The shards of the same rows at several sizes are written together: each image is read once. A
finished shard has a note of what went into it beside its file. Their names hold a hash of all that
decides their bytes, so that a run that was killed is taken up by whoever finds them, and nobody
takes what was made from other files or in another way.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fmi_jax.atomic import whole_file, write_bytes
from fmi_jax.data.labels import Label
from fmi_jax.data.preparing.images import read_image, resize_image
from fmi_jax.data.preparing.masks import fill_runs, read_mask, resize_mask
from fmi_jax.data.preparing.selection import Row
from fmi_jax.errors import UserError

# This module runs in worker processes, so it imports neither jax nor what imports it.


class Seen(NamedTuple):
    """Record kept for one image.

    Attributes:
      file_sha256: checksum of its file's bytes, and of its masks' where it has any.
      pixels_sha256: checksum of its prepared pixels; equal for two files with the same picture.
      width, height: size of the raw image, upright, in pixels.
      present: 1 for each class that the raw mask has, else 0; for sets with masks.
      pixels: number of pixels of each class in the prepared mask; for sets with masks.
    """

    file_sha256: str
    pixels_sha256: str
    width: int
    height: int
    present: tuple[int, ...] | None = None
    pixels: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardNote:
    """What went into a shard.

    Attributes:
      images: facts about each row's image, or the reason that it cannot be used.
      histogram: count of each value in each channel, `[c][256]`.
      record_bytes: size of all records before compression.
      shard_bytes: size of the shard's file.
    """

    images: tuple[Seen | str, ...]
    histogram: list[list[int]]
    record_bytes: int
    shard_bytes: int

    @property
    def records(self) -> int:
        """Number of images in the shard."""
        return sum(isinstance(image, Seen) for image in self.images)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows of one split at one size.

    Attributes:
      rows: rows of the split, in order.
      size: side of the images in pixels.
      path: path of the shard's file without the suffix.
    """

    rows: Sequence[Row]
    size: int
    path: Path

    @property
    def split(self) -> str:
        """Split that all rows belong to."""
        return self.rows[0].split

    @property
    def file(self) -> Path:
        """The array_record file."""
        return self.path.with_name(self.path.name + ".array_record")

    @property
    def note_file(self) -> Path:
        """The file of its note."""
        return self.path.with_name(self.path.name + ".json")

    def is_done(self) -> bool:
        """Test whether it need not be written: it is there, and no image failed."""
        note = self._read_note()
        return note is not None and note.records == len(note.images)  # a fault may have passed

    @functools.cached_property
    def note(self) -> ShardNote:
        """What went into it; `UserError` unless it is there in full."""
        note = self._read_note()
        if note is None:
            raise UserError(
                f"{self.path} was there and is gone; expected to be alone in its folder."
            )
        return note

    def _read_note(self) -> ShardNote | None:
        try:
            values = json.loads(self.note_file.read_text())
            images = (x if isinstance(x, str) else Seen(*x) for x in values["images"])
            note = ShardNote(**values | {"images": tuple(images)})
            return note if self.file.stat().st_size == note.shard_bytes else None
        except (OSError, ValueError, TypeError, KeyError):
            return None


def features_of(
    size: int, channels: int, classes: tuple[str, ...], label: Label
) -> tfds.features.FeaturesDict:
    """TFDS features of a record: the pixels, the id, and the label if any (a mask: pixels too)."""
    if label is Label.INDEX:
        labels = tfds.features.ClassLabel(names=list(classes))
    else:
        labels = tfds.features.Tensor(
            shape=label.shape(len(classes), size),
            dtype=label.dtype,
            encoding="bytes" if label.of_pixels else "none",
        )
    # Bytes, not PNG, because array_record compresses them itself. At 256 x 256 RGB they are read
    # 3.6 times as fast as a PNG (1,900 against 530 images per CPU second) at 1.2 times the size,
    # for the synthetic photographs; for noise, 8 times as fast at 1.6 times the size.
    image = tfds.features.Tensor(
        shape=(size, size, channels), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )
    features = {"image": image, "label": labels, "id": tfds.features.Text()}
    if label is Label.NONE:
        del features["label"]
    return tfds.features.FeaturesDict(features)


def write_shards(
    shards: Sequence[Shard],
    *,
    channels: int,
    classes: tuple[str, ...],
    label: Label,
    mask_resize: str,
) -> Iterator[None]:
    """Read the images of shards of the same rows, each once, and write the shards and their notes.

    Args:
      shards: shards of the same rows.
      channels: 3 for colour, 1 for grey.
      classes: names of the classes.
      label: form of the labels.
      mask_resize: one of `masks.RESIZES`.

    Yields:
      None after each row. The files appear when the iterator is exhausted.
    """
    drafts = [_Draft(shard, channels, classes, label, mask_resize) for shard in shards]
    with contextlib.ExitStack() as stack:
        for draft in drafts:
            stack.enter_context(draft.open())
        for row in shards[0].rows:
            image = read_row(row, len(classes), channels)
            for draft in drafts:
                draft.add(row, image)
            del image  # free it before the next is read
            yield
    for draft in drafts:
        draft.write_note()


class RawRow(NamedTuple):
    """Raw contents of a row.

    Attributes:
      image: raw image.
      mask: class or classes of each pixel at the size at which masks were drawn, uint8 `[h, w]`;
        None: all is background.
      sha256: checksum of all files.
    """

    image: Image.Image
    mask: np.ndarray | None
    sha256: str


def read_row(row: Row, num_classes: int, channels: int) -> RawRow | UserError:
    """The raw image and mask of a row, or why there is none."""
    example = row.example
    try:
        image, sha256 = read_image(row.path, channels=channels, item=example.item)
        if not (row.masks or example.runs):
            return RawRow(image, None, sha256)
        size = example.mask_size or image.size
        mask, digests = read_mask(
            [mask.path for mask in row.masks],
            size=size,
            num_classes=num_classes,
            layers=example.layers,
        )
        if example.runs:
            mask = np.maximum(mask, fill_runs(example.runs, size=size))
    except UserError as error:
        return error
    if digests:
        sha256 = hashlib.sha256("".join([sha256, *digests]).encode()).hexdigest()
    return RawRow(image, mask, sha256)


class _Draft:
    """A shard that is being written."""

    def __init__(
        self,
        shard: Shard,
        channels: int,
        classes: tuple[str, ...],
        label: Label,
        mask_resize: str,
    ):
        self._shard = shard
        self._label = label
        self._num_classes = len(classes)
        self._mask_resize = mask_resize
        self._features: Any = features_of(shard.size, channels, classes, label)
        self._serializer = tfds.core.ExampleSerializer(self._features.get_serialized_info())
        self._images: list[Seen | str] = []
        self._histogram = np.zeros((channels, 256), np.int64)
        self._bytes = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with whole_file(self._shard.file) as draft:
            self._writer = ArrayRecordWriter(str(draft), "group_size:1")  # read by row: a row each
            yield
            with _full_disk():
                self._writer.close()

    def add(self, row: Row, image: RawRow | UserError) -> None:
        if isinstance(image, UserError):
            self._images.append(str(image))
            return
        pixels = resize_image(image.image, size=self._shard.size)
        label, present, counts = row.example.label, None, None
        if self._label.of_pixels:
            label = resize_mask(
                image.mask,
                size=self._shard.size,
                label=self._label,
                num_classes=self._num_classes,
                how=self._mask_resize,
            )
            raw = np.zeros((1, 1), np.uint8) if image.mask is None else image.mask
            present = tuple(int(count > 0) for count in self._count(raw))
            counts = self._count(label)
        values = {"image": pixels, "label": label, "id": row.example.id}
        example = self._serializer.get_tf_example(
            self._features.encode_example({name: values[name] for name in self._features})
        )
        # By default the order of the features in the bytes is another in every process.
        record = example.SerializeToString(deterministic=True)
        with _full_disk():
            self._writer.write(record)
        self._bytes += len(record)
        for channel, of_values in enumerate(self._histogram):
            of_values += np.bincount(pixels[..., channel].ravel(), minlength=256)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        self._images.append(
            Seen(image.sha256, digest, image.image.width, image.image.height, present, counts)
        )

    def _count(self, mask: np.ndarray) -> tuple[int, ...]:
        """Count the pixels of each class."""
        of_values = np.array(Image.fromarray(mask).histogram())
        values = np.arange(256, dtype=np.uint8)
        classes = range(self._num_classes)
        return tuple(int(of_values[self._label.pixels_of(values, c)].sum()) for c in classes)

    def write_note(self) -> None:
        note = ShardNote(
            images=tuple(self._images),
            histogram=self._histogram.tolist(),
            record_bytes=self._bytes,
            shard_bytes=self._shard.file.stat().st_size,
        )
        write_bytes(self._shard.note_file, json.dumps(dataclasses.asdict(note)).encode())


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # array_record raises this whatever the system says
        raise OSError(str(error)) from error
