"""Provenance of numbers: data, weights, devices and versions, and where a table mixes them."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from fmi_jax.drawing.style import short
from fmi_jax.drawing.wording import count, listed
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.outcomes import Outcome

_COMPARED_VERSIONS = ("fmi_jax", "jax")
"""Libraries whose versions are compared; two versions in one table give a warning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Data set that cells were trained and tested on.

    Attributes:
      name, split, sha256: name, split rule and checksum of the split of the prepared data.
      counts: images by split, in words, and patients or lesions where the data name them.
      remarks: reasons why results on it are less sure than they look, a sentence each.
      synthetic: True if the images were drawn by a program.
    """

    name: str
    split: str
    sha256: str
    counts: str
    synthetic: bool
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that a network started from.

    Attributes:
      network: name of the backbone, or of the transformer on top.
      weights: tag or file, or "random initialisation".
      sha256: checksum of the file; empty for random weights.
    """

    network: str
    weights: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Provenance of the cells that the numbers of a table are made of.

    Attributes:
      datasets, weights, devices: number of cells for each that occurs.
      notes: number of cells for each note of the runs, by name of the data set; remarks on the data
        stand with the data sets.
      versions: number of cells for each version of each library.
      warnings: differences that make the numbers of the table incomparable, one sentence each.
    """

    datasets: Mapping[Dataset, int]
    weights: Mapping[Weights, int]
    devices: Mapping[str, int]
    notes: Mapping[str, Mapping[str, int]]
    versions: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...]

    @property
    def remarks(self) -> dict[str, list[str]]:
        """Remarks on each data set that has any, each once, by its name and split."""
        found: dict[str, dict[str, None]] = {}
        for dataset in self.datasets:
            for remark in dataset.remarks:
                found.setdefault(f"{dataset.name} ({dataset.split})", {})[remark] = None
        return {name: [*remarks] for name, remarks in found.items()}


def provenance_of(numbers: Sequence[Number]) -> Provenance:
    """Collect the provenance of numbers that stand in one table."""
    cells = list(dict.fromkeys(outcome for number in numbers for outcome in number.used))
    datasets = collections.Counter(map(_dataset, cells))
    weights = collections.Counter(used for cell in cells for used in _weights(cell))
    devices = collections.Counter(cell.device for cell in cells)
    versions = {
        name: collections.Counter(cell.finished.versions.get(name, "unknown") for cell in cells)
        for name in dict.fromkeys(name for cell in cells for name in cell.finished.versions)
    }
    compared = [
        *(
            (f"checksums of the split of data set {d.name}", d.sha256, n)
            for d, n in datasets.items()
        ),
        *(
            (f"checksums of the weights {w.weights} of {w.network}", w.sha256, n)
            for w, n in weights.items()
        ),
        *(
            (f"versions of {name}", version, n)
            for name in _COMPARED_VERSIONS
            for version, n in versions.get(name, {}).items()
        ),
        *(("kinds of device", kind, n) for kind, n in devices.items()),
    ]
    return Provenance(
        datasets=datasets,
        weights=weights,
        devices=devices,
        notes=_notes(cells),
        versions=versions,
        warnings=tuple(_differing(compared)),
    )


def _dataset(cell: Outcome) -> Dataset:
    dataset = cell.finished.dataset
    return Dataset(
        name=str(dataset["name"]),
        split=str(dataset["split"]),
        sha256=str(dataset["split_sha256"]),
        counts=_counts(dataset["counts"], dataset.get("group_counts", {})),
        synthetic=bool(dataset.get("synthetic")),
        remarks=tuple(dataset.get("remarks", ())),
    )


def _counts(images: Mapping[str, int], groups: Mapping[str, int]) -> str:
    """Write images by split: "30 train (of 21 patients or lesions), 7 test"."""
    of = {split: f" (of {n:,} patients or lesions)" for split, n in groups.items() if n}
    return ", ".join(f"{n:,} {split}{of.get(split, '')}" for split, n in images.items())


def _notes(cells: Sequence[Outcome]) -> dict[str, collections.Counter[str]]:
    notes: dict[str, collections.Counter[str]] = {}
    for cell in cells:
        remarks = cell.finished.dataset.get("remarks", ())
        if found := [note for note in cell.finished.all_notes if note not in remarks]:
            notes.setdefault(_dataset(cell).name, collections.Counter()).update(found)
    return notes


def _weights(cell: Outcome) -> Iterator[Weights]:
    backbone = cell.finished.backbone
    if cell.analysis is not None:  # it has several networks, which its `values` name
        return
    for network, prefix in (("name", ""), ("transformer", "transformer_")):
        if network in backbone:
            yield Weights(
                network=str(backbone[network]),
                weights=str(backbone.get(f"{prefix}weights") or "random initialisation"),
                sha256=str(
                    backbone.get(f"{prefix}weights_sha256")
                    or (backbone.get("run_sha256") if network == "name" else None)
                    or ""
                ),
            )


def _differing(found: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    """Yield a warning for each thing that has more than one value.

    Args:
      found: name of the thing in the plural; a value; number of cells that have it.
    """
    things: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for what, value, n in found:
        things[what][value] += n
    for what, values in things.items():
        if len(values) > 1:
            each = [f"{short(v, 16) or 'none'} ({count(n, 'cell')})" for v, n in values.items()]
            yield f"The cells of this table have {len(values)} {what}: {listed(each)}."
