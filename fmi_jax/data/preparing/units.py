"""Unit of preparation: some rows of one split, read together and written as one shard per size.

A finished unit consists of a shard and a note of its contents. Their names hold a hash of
everything that decides their bytes. So the next run can use the units of a killed run, and no run
uses units that were made from other files or in another way.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from fmi_jax.atomic import whole_file, write_bytes
from fmi_jax.data.labels import Label
from fmi_jax.data.preparing.images import RawImage, read_image, resize_image
from fmi_jax.errors import UserError

# This module runs in worker processes, so it imports neither jax nor modules that import it.
if TYPE_CHECKING:
    from fmi_jax.data.raw.spec import RawExample


class UnitRow(NamedTuple):
    """Data that a worker needs about a row: parts of its `RawExample`, and its file."""

    id: str
    where: str
    path: Path
    item: int | None
    label: int | tuple[float, ...]

    @classmethod
    def of(cls, example: "RawExample", path: Path) -> Self:
        """Make the row of `example`, whose image is the file `path`."""
        return cls(example.id, example.where, path, example.item, example.label)

    @property
    def place(self) -> str:
        """Row and path, as shown in messages."""
        return f"{self.where}: {self.path}"


@dataclasses.dataclass(frozen=True)
class Unit:
    """Rows that are read together.

    Attributes:
      split: split that all rows belong to.
      rows: rows of the unit, in order.
      shards: path of the records of each size, without the suffix; only sizes that are still to
        be written.
    """

    split: str
    rows: tuple[UnitRow, ...]
    shards: Mapping[int, Path]


class Seen(NamedTuple):
    """Record kept for one image.

    Attributes:
      file_sha256: checksum of its file's bytes.
      pixels_sha256: checksum of its prepared pixels; equal for two files with the same picture.
      width, height: size of the raw image, upright, in pixels.
    """

    file_sha256: str
    pixels_sha256: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitNote:
    """Contents of one shard.

    Attributes:
      images: record of each row's image, or why the image cannot be used.
      histogram: count of each value in each channel, `[c][256]`.
      record_bytes: size of all records before compression.
      shard_bytes: size of the file.
    """

    images: tuple[Seen | str, ...]
    histogram: list[list[int]]
    record_bytes: int
    shard_bytes: int

    @property
    def records(self) -> int:
        """Number of images in the shard."""
        return sum(isinstance(image, Seen) for image in self.images)

    @classmethod
    def read(cls, shard: Path) -> Self | None:
        """Read the note beside a shard; None unless both are complete."""
        try:
            values = json.loads(note_file(shard).read_text())
            values["images"] = tuple(
                x if isinstance(x, str) else Seen(*x) for x in values["images"]
            )
            note = cls(**values)
            return note if record_file(shard).stat().st_size == note.shard_bytes else None
        except (OSError, ValueError, TypeError, KeyError):
            return None


def record_file(shard: Path) -> Path:
    """Path of the array_record file of a shard."""
    return shard.with_name(shard.name + ".array_record")


def note_file(shard: Path) -> Path:
    """Path of a shard's `UnitNote`."""
    return shard.with_name(shard.name + ".json")


def features_of(
    size: int, channels: int, classes: tuple[str, ...], label: Label
) -> tfds.features.FeaturesDict:
    """TFDS features of a record: the pixels, the label and the id."""
    if label is Label.INDEX:
        labels = tfds.features.ClassLabel(names=list(classes))
    else:
        labels = tfds.features.Tensor(shape=label.shape(len(classes)), dtype=label.dtype)
    # Bytes, not PNG, because array_record compresses them itself. At 256 x 256 RGB they are read
    # 3.6 times as fast as a PNG (1,900 against 530 images per CPU second) at 1.2 times the size,
    # for the synthetic photographs; for noise, 8 times as fast at 1.6 times the size.
    image = tfds.features.Tensor(
        shape=(size, size, channels), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )
    return tfds.features.FeaturesDict({"image": image, "label": labels, "id": tfds.features.Text()})


def write_unit(
    unit: Unit, *, channels: int, classes: tuple[str, ...], label: Label
) -> Iterator[None]:
    """Read the images of a unit, each once, and write its shards and their notes.

    Yields:
      None after each row. The files appear when the iterator is exhausted.
    """
    drafts = [
        _Draft(shard, features_of(size, channels, classes, label), size, channels)
        for size, shard in unit.shards.items()
    ]
    with contextlib.ExitStack() as stack:
        for draft in drafts:
            stack.enter_context(draft.open())
        for row in unit.rows:
            image = read_row(row, channels)
            for draft in drafts:
                draft.add(row, image)
            del image  # free it before the next is read
            yield
    for draft in drafts:
        draft.write_note()


def read_row(row: UnitRow, channels: int) -> RawImage | UserError:
    """Read the raw image of a row, or return the error that says why there is none."""
    try:
        return read_image(row.path, channels=channels, item=row.item)
    except UserError as error:
        return error


class _Draft:
    """A shard that is being written."""

    def __init__(self, shard: Path, features: Any, size: int, channels: int):
        self._shard = shard
        self._features = features
        self._serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
        self._size = size
        self._images: list[Seen | str] = []
        self._histogram = np.zeros((channels, 256), np.int64)
        self._bytes = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with whole_file(record_file(self._shard)) as draft:
            self._writer = ArrayRecordWriter(str(draft), "group_size:1")  # rows are read one by one
            yield
            with _full_disk():
                self._writer.close()

    def add(self, row: UnitRow, image: RawImage | UserError) -> None:
        if isinstance(image, UserError):
            self._images.append(str(image))
            return
        pixels = resize_image(image.image, size=self._size)
        example = self._serializer.get_tf_example(
            self._features.encode_example({"image": pixels, "label": row.label, "id": row.id})
        )
        # By default the order of the features in the bytes differs between processes.
        record = example.SerializeToString(deterministic=True)
        with _full_disk():
            self._writer.write(record)
        self._bytes += len(record)
        for channel, counts in enumerate(self._histogram):
            counts += np.bincount(pixels[..., channel].ravel(), minlength=256)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        self._images.append(Seen(image.sha256, digest, image.image.width, image.image.height))

    def write_note(self) -> None:
        note = UnitNote(
            images=tuple(self._images),
            histogram=self._histogram.tolist(),
            record_bytes=self._bytes,
            shard_bytes=record_file(self._shard).stat().st_size,
        )
        write_bytes(note_file(self._shard), json.dumps(dataclasses.asdict(note)).encode())


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # array_record raises this whatever the system says
        raise OSError(str(error)) from error
