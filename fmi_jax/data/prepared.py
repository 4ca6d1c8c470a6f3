"""Prepared data sets on disk: their description, and their images by row.

`<data_dir>/<name>/<size>-<split>/` holds a TFDS data set in array_record (any TFDS reader can
open it), `index.csv` (one line per image: split, id, label, group, path, sha256 of the source
file, width and height of the source image, boxes if there are any, and further columns of the raw
table as `column:<name>`, in row order) and `manifest.json` (everything else, and checksums and
sizes of the other files). A smoke run on the first n rows of every split (`fmi-jax prepare --limit
n`) has a split named `<split>-limit<n>`, here and in every result; it is only used if it is asked
for by that name.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8
from tensorflow_datasets.proto import tf_example_pb2

from fmi_jax.atomic import csv_lines
from fmi_jax.data.labels import Label
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.errors import UsageError, UserError, unknown_name
from fmi_jax.types import Rows

if TYPE_CHECKING:
    from fmi_jax.data.raw.spec import DatasetSpec
    from fmi_jax.registry import Registry

FORMAT = 5
"""Format of the folder; raised when older code could not read it, or wrote it differently. Format 2
had no masks, and its manifest did not name the form of the labels; format 3 did not say whether
they are ordinal, nor the revision of the split rule, and had no further columns; format 4 had no
masks that overlap, and counted no pixels (`_upgraded`)."""

_ORDINAL = ("aptos2019", "synthetic")
"""Data sets with ordinal labels at the time of format 3."""

MANIFEST = "manifest.json"
INDEX = "index.csv"
INDEX_COLUMNS: tuple[str, ...] = (
    "split", "id", "label", "group", "path", "file_sha256", "width", "height",
)  # fmt: skip
COLUMN = "column:"
"""Prefix of the further columns in the index."""
_LIMIT = "-limit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Description of a prepared data set; a part of its manifest, and of every result.

    Attributes:
      name: name of the data set.
      label: form of the labels.
      task: name of the task that the labels are for.
      classes: name of each of the `k` classes.
      channels: channels of the images.
      size: side of the images in pixels.
      mean, std: pixel statistics per channel, in 0..1; empty where there are no training images to
        take them from.
      metric: data set's own validation metric.
      split: name of the split rule, with "-limit<n>" for a set cut short.
      limit: number of rows that a smoke run took from every split; 0: all.
      split_sha256: checksum of "split,id" of every image in order; equal exactly if the same
        images are trained and tested on.
      counts: images in each split.
      class_counts: images of each class in each split (for a multi-label set: sums of the labels
        that are known).
      group_counts: groups (patients, lesions) in each split; none where the data name none.
      class_groups: classes over which the metrics are averaged once more, by name.
      ordinal: True if the classes are grades, in their order.
      unknown_counts: images in each split whose label of each class is not known; empty where all
        labels are known.
      synthetic: True if the images were drawn by a program, not photographed.
      manifest_sha256: checksum of the manifest, which stands for everything about the data.
    """

    name: str
    label: Label
    task: str
    classes: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metric: str
    split: str
    limit: int
    split_sha256: str
    counts: Mapping[str, int]
    class_counts: Mapping[str, tuple[float, ...]]
    class_groups: Mapping[str, tuple[str, ...]]
    synthetic: bool
    manifest_sha256: str
    group_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ordinal: bool = False
    unknown_counts: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def known_counts(self, split: str) -> Float[np.ndarray, "k"]:
        """Count the images of a split whose label of each class is known."""
        unknown = self.unknown_counts.get(split, (0.0,) * len(self.classes))
        return self.counts[split] - np.asarray(unknown, np.float64)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        if not self.unknown_counts:  # the description of most sets, which older versions read
            del values["unknown_counts"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Invert `to_json`, also of older formats; other keys are ignored."""
        values = _upgraded(values)
        known = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        known["label"] = Label(known["label"])
        for name in ("classes", "mean", "std"):
            known[name] = tuple(known[name])
        for name in ("class_counts", "class_groups", "unknown_counts"):
            known[name] = {k: tuple(v) for k, v in known[name].items()}
        return cls(**known)


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """Images of one split by row; random access from any thread and any process.

    Attributes:
      folder: folder of the prepared data set.
      name: "train", "val" or "test".
      rows: records of the prepared split that belong to it, in order; None: all.
    """

    folder: Path
    name: str
    rows: tuple[int, ...] | None = None

    @functools.cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        try:
            return tfds.builder_from_directory(self.folder)
        except Exception as error:  # TFDS raises several types for damaged files.
            raise _damaged(self.folder, f"TFDS cannot open it ({error})") from error

    @functools.cached_property
    def _source(self) -> Any:
        raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
        return self._builder.as_data_source(self.name, deserialize_method=raw_bytes)  # type: ignore[call-arg]

    @functools.cached_property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of an image and of a label."""
        features: Any = self._builder.info.features
        return features["image"].shape, features["label"].shape if "label" in features else (0,)

    def __len__(self) -> int:
        return len(self._source) if self.rows is None else len(self.rows)

    def __getitem__(self, row: int) -> tuple[UInt8[np.ndarray, "h w c"], np.ndarray]:
        """Image, uint8 `[size, size, channels]`, and label in its form (`Label`); both read-only.

        Raises:
          UserError: the record is damaged.
        """
        source, shapes = self._source, self._shapes
        record = row if self.rows is None else self.rows[row]
        try:
            return _parse(source[record], *shapes)
        except Exception as error:  # array_record raises several types for damaged files.
            raise self._unreadable(record, error) from error

    def _unreadable(self, row: int, error: Exception) -> UserError:
        split = self._builder.info.splits[self.name]
        ends = np.cumsum(split.shard_lengths)
        file = split.filepaths[int(np.searchsorted(ends, row, side="right"))]
        return _damaged(
            self.folder,
            f"row {row} of {self.name} ({open_folder(self.folder).ids(self.name)[row]!r},"
            f" in {file.name}) cannot be read: {str(error).partition(chr(10))[0]}",
        )


def _parse(
    record: bytes, shape: tuple[int, ...], label_shape: tuple[int, ...]
) -> tuple[UInt8[np.ndarray, "h w c"], np.ndarray]:
    """Parse the image and label of a record.

    This takes 0.02 ms; TFDS takes 0.2 ms for the same. Either holds the interpreter's lock, for
    which all reading threads wait.
    """
    example = tf_example_pb2.Example.FromString(record)  # type: ignore[attr-defined]
    feature = example.features.feature
    (pixels,) = feature["image"].bytes_list.value
    image = np.frombuffer(pixels, np.uint8).reshape(shape)
    if soft := feature["label"].float_list.value:
        return image, np.asarray(soft, np.float32)
    if whole := feature["label"].bytes_list.value:
        return image, np.frombuffer(whole[0], np.uint8).reshape(label_shape)
    index = feature["label"].int64_list.value
    return image, np.asarray(index[0], np.int32) if index else np.zeros(label_shape, np.float32)


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set on disk.

    Attributes:
      folder: folder of the data set.
      info: description of the data set.
      manifest: contents of `manifest.json`.
      train_rows: training images in use, as rows of the prepared split in order; None: all
        (`subset.training_subset`). "train" means these images in all methods.
    """

    folder: Path
    info: DatasetInfo
    manifest: Mapping[str, Any]
    train_rows: tuple[int, ...] | None = None

    def split(self, name: str) -> PreparedSplit:
        """Images of one split; `UsageError` if there is no split of that name."""
        if name not in self.info.counts:
            raise unknown_name("split", name, self.info.counts)
        return PreparedSplit(self.folder, name, self.train_rows if name == "train" else None)

    def image(self, split: str, row: int) -> UInt8[np.ndarray, "h w c"]:
        """Read one image, uint8 `[size, size, channels]`."""
        return self.split(split)[row][0]

    def ids(self, split: str) -> list[str]:
        """Id of every image of a split, in row order."""
        return [line["id"] for line in self.lines(split)]

    def labels(self, split: str) -> np.ndarray:
        """Labels of a split in row order: int32 `[n]` or float32 `[n, k]`; see `Label.array`."""
        return self.info.label.array([json.loads(line["label"]) for line in self.lines(split)])

    def groups(self, split: str) -> list[str] | None:
        """Patient or lesion of every image of a split; None if the data name none.

        An image without one, where others have one, is a group of its own.
        """
        if not any(line["group"] for lines in self._index.values() for line in lines):
            return None
        return [line["group"] or line["id"] for line in self.lines(split)]

    def rows(self, split: str) -> Rows:
        """What is known of the images of a split beside their labels, in the order of its rows."""
        return Rows(self.ids(split), self.groups(split), self.columns(split))

    def columns(self, split: str) -> dict[str, list[str]]:
        """Further columns of the raw table (sex, age, view ...), each in row order; "": unknown."""
        lines = self.lines(split)
        return {name: [line[COLUMN + name] for line in lines] for name in self.manifest["columns"]}

    def file_sha256(self, split: str) -> list[str]:
        """SHA-256 of the raw image of every row of a split."""
        return [line["file_sha256"] for line in self.lines(split)]

    def sizes(self, split: str) -> np.ndarray:
        """Width and height in pixels of every raw image of a split, upright: int32 `[n, 2]`."""
        lines = self.lines(split)
        return np.array([(x["width"], x["height"]) for x in lines], np.int32).reshape(-1, 2)

    def lines(self, split: str) -> list[dict[str, str]]:
        """Lines of `index.csv` for a split, in row order: fields by column."""
        rows, lines = self.split(split).rows, self._index[split]
        return lines if rows is None else [lines[row] for row in rows]

    @functools.cached_property
    def _index(self) -> dict[str, list[dict[str, str]]]:
        data = _read(self.folder / INDEX)
        if hashlib.sha256(data).hexdigest() != self.manifest["index_sha256"]:
            raise _damaged(self.folder, f"{INDEX} is not what was prepared")
        lines: dict[str, list[dict[str, str]]] = {name: [] for name in SPLITS}
        for line in csv_lines(io.StringIO(data.decode(), newline="")):
            lines[line["split"]].append(line)
        return lines


def open_dataset(data_dir: Path, name: str, size: int, split: str = "") -> PreparedDataset:
    """Open a data set that `fmi-jax prepare` has written.

    Args:
      data_dir: folder that holds the prepared sets.
      name: name of the data set.
      size: side of its images in pixels.
      split: name of the split rule; empty: the only one prepared, else the first of the data
        set's that is, and never one cut short by `--limit`.

    Raises:
      UsageError: it is not prepared; the message lists prepared sets, and the command to type.
      UserError: it is damaged.
    """
    prepared = list_prepared(data_dir)
    splits = [s for n, side, s in prepared if (n, side) == (name, size)]
    whole = [s for s in splits if s == rule_of(s)]
    if not split and len(whole) > 1:
        datasets = _datasets()
        rules = datasets[name].splits if name in datasets else ()
        default = next((rule for rule in rules if rule in whole), None)
        if default is None:
            raise UsageError(
                f"data set {name!r} is prepared with several splits in {data_dir}: "
                f"{', '.join(whole)}; expected the name of one of them (data.split)."
            )
        split = default
    split = split or (whole[0] if whole else "")
    if split not in splits:
        raise _not_prepared(data_dir, name, size, split, prepared)
    return open_folder(data_dir / name / f"{size}-{split}")


def open_or_draw(data_dir: Path, name: str, size: int, split: str = "") -> PreparedDataset:
    """Open a prepared data set; one that is drawn by a program is prepared if it is missing.

    Arguments and errors are those of `open_dataset`.
    """
    splits = [s for n, side, s in list_prepared(data_dir) if (n, side) == (name, size)]
    whole = {s for s in splits if s == rule_of(s)}
    missing = split not in splits if split else not whole
    if missing and split == rule_of(split):
        datasets = _datasets()
        if name in datasets and datasets[name].synthetic:
            from fmi_jax.data.preparing.prepare import prepare  # with every reader of raw data

            return prepare(datasets[name], None, data_dir, size=size, split=split)
    return open_dataset(data_dir, name, size, split)


def limited(split: str, limit: int) -> str:
    """Name of a split of which only the first `limit` rows are taken (0: all)."""
    return f"{split}{_LIMIT}{limit}" if limit else split


def rule_of(split: str) -> str:
    """Name of the split rule behind a split, which may be cut short."""
    return split.partition(_LIMIT)[0]


def list_prepared(data_dir: Path) -> list[tuple[str, int, str]]:
    """List name, size and split of every prepared data set under `data_dir`."""
    folders = [manifest.parent for manifest in sorted(data_dir.glob(f"[!.]*/[!.]*/{MANIFEST}"))]
    parts = [(folder.parent.name, *folder.name.partition("-")) for folder in folders]
    return [(name, int(size), split) for name, size, _, split in parts if size.isdecimal()]


def open_folder(folder: Path) -> PreparedDataset:
    """Open the prepared data set in `folder`; `UserError` if it is damaged or of another format.

    The manifest is checked against its own checksum and every file against its size. Records have
    their own checksums, which are checked when they are read.
    """
    try:
        manifest = json.loads(_read(folder / MANIFEST))
        sha256 = manifest.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(folder, f"{MANIFEST} is not a manifest") from error
    if manifest_sha256(manifest) != sha256:
        raise _damaged(folder, f"{MANIFEST} does not match its checksum")
    manifest = _upgraded(manifest)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder} is of format {manifest.get('format')}, and this version of fmi_jax reads 2"
            f" to {FORMAT}: prepare it again with {prepare_command(folder)} --overwrite, or install"
            " the version that wrote it."
        )
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise _damaged(folder, f"{name} is missing or not of {size} bytes")
    info = DatasetInfo.from_json(manifest | {"manifest_sha256": sha256})
    return PreparedDataset(folder, info, manifest)


def _upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Add what older formats did not say; also to a description, which has no format number."""
    if manifest.get("format", FORMAT) not in range(2, FORMAT + 1):
        return dict(manifest)
    label = Label.VECTOR if manifest.get("task") == "multilabel" else Label.INDEX
    added = {
        "label": label.value,  # in format 2 only a multi-label set had a value for each class
        "ordinal": manifest.get("name") in _ORDINAL,
        "split_revision": 1,
        "group_counts": {},
        "columns": [],
        "mask_resize": "nearest",
        "unknown_counts": {},  # absent from all manifests of sets whose labels are all known
    }
    return {**added, **manifest, "format": FORMAT}


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest's JSON with sorted keys, without the checksum itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def lines_sha256(lines: Iterable[str]) -> str:
    """Checksum of a text of these lines."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path.parent, f"{path.name}: {error.strerror}") from None


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"{folder} cannot be used: {what}; prepare it again with --overwrite.")


def _not_prepared(
    data_dir: Path, name: str, size: int, split: str, prepared: list[tuple[str, int, str]]
) -> UsageError:
    have = ", ".join(f"{n} (size {side}, split {s})" for n, side, s in prepared) or "none"
    if name not in (names := {n for n, _, _ in prepared} | set(_datasets())):
        error = unknown_name("data set", name, names)
        return UsageError(f"{error} Prepared in {data_dir}: {have}.")
    return UsageError(
        f"data set {name!r} is not prepared at size {size}{f' with split {split!r}' * bool(split)}"
        f" in {data_dir}. Prepared there: {have}. To prepare it:"
        f" {prepare_command(data_dir / name / f'{size}-{split}')}"
    )


def _datasets() -> "Registry[DatasetSpec]":
    """Every named data set; what is prepared is opened without the readers that they bring."""
    from fmi_jax.data.registry import DATASETS

    return DATASETS


def prepare_command(folder: Path) -> str:
    """Write the command that prepares the data set of a folder."""
    datasets, (size, _, split) = _datasets(), folder.name.partition("-")
    name, data_dir = folder.parent.name, folder.parent.parent
    kind = name if name in datasets else f"csv (or folder) --name {name}"
    source = "" if name in datasets and datasets[name].synthetic else " --source FOLDER"
    rule, _, limit = split.partition(_LIMIT)
    options = f" --split {rule}" * bool(rule) + f" --limit {limit}" * bool(limit)
    return f"fmi-jax prepare {kind}{source} --data-dir {data_dir} --size {size}{options}"
