"""The file `<study>.json`: a planned study, as drivers write it and the report reads it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fmi_jax.artifacts import older, sealed
from fmi_jax.artifacts.result import Shows
from fmi_jax.errors import UserError, unknown_name
from fmi_jax.study.published import Published

FORMAT = 3
"""Format number of `<study>.json`; in format 1 settings lacked `shows` and `label`, in 2 the
study lacked `reference`."""

DATASET = "dataset"
"""Coordinate that makes the columns of the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """Figure of a study: its kind and coordinates.

    Attributes:
      kind: "dots" (a value for each model), "curves" (values over `x`), "gain" (relative to a
        baseline), "time" (cost of training and inference), "layers" (CKA of layers) or "models"
        (CKA of the last layers of several models).
      x: coordinate along the horizontal axis of curves, in the order of the settings.
      x_label: label of the horizontal axis.
      lines: coordinate that a line, a colour or a row stands for.
    """

    kind: str
    x: str = ""
    x_label: str = ""
    lines: str = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell of the plan; see `fmi_jax.study.cells.Cell`.

    Attributes:
      id: name of the cell and of its folder.
      learning_rate, seed: values that the study chose for the cell.
      of: name of the cell whose network it analyses.
    """

    id: str
    learning_rate: float | None
    seed: int | None
    of: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlannedSetting:
    """A setting of the plan: a number, point or panel; see `fmi_jax.study.spec.Setting`.

    Attributes:
      at: coordinates of the setting.
      protocol: name of the protocol; None if the setting cannot be run.
      shows: kind of display in the report.
      label: an analysis's headline number in words; empty if there is none.
      published: published number, if there is one.
      why_not: reason why it cannot be run.
      cells: all cells that its number could need, by rate and then by seed.
    """

    at: Mapping[str, str]
    protocol: str | None
    shows: Shows
    label: str
    published: Published | None
    why_not: str
    cells: tuple[PlannedCell, ...]

    @property
    def paired(self) -> bool:
        """Whether each seed follows a cell of its own, so that none of these is chosen."""
        seeds: dict[str, set[int | None]] = {}
        for cell in self.cells:
            if cell.of is not None:
                seeds.setdefault(cell.of, set()).add(cell.seed)
        each = [*seeds.values()]
        return all(len(one) == 1 for one in each) and len(set().union(*each)) > 1

    @property
    def dataset(self) -> str:
        """Data set, the column of the table."""
        return self.at.get(DATASET, "")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlannedStudy:
    """A study as it was planned; see `fmi_jax.study.spec.Study` and `Plan`.

    Attributes:
      name, title, note, rows, figure, rates, seeds, reference: fields of the study.
      product: whether every rate gets every seed.
      changed: config fields that are not as the study has them.
      settings: settings of the study, in the order of the rows.
    """

    name: str
    title: str
    note: str
    rows: tuple[str, ...]
    figure: Figure | None
    rates: tuple[float, ...]
    seeds: int
    product: bool
    changed: Mapping[str, str]
    settings: tuple[PlannedSetting, ...]
    reference: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The study and every cell that it could need, as JSON values."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, with the rows completed."""
        settings = tuple(
            PlannedSetting(
                at=setting["at"],
                protocol=setting["protocol"],
                shows=setting["shows"],
                label=setting["label"],
                published=Published(**setting["published"]) if setting["published"] else None,
                why_not=setting["why_not"],
                cells=tuple(PlannedCell(**cell) for cell in setting["cells"]),
            )
            for setting in values["settings"]
        )
        return cls(
            name=values["name"],
            title=values["title"],
            note=values["note"],
            rows=_rows(values["rows"], settings),
            figure=Figure(**values["figure"]) if values["figure"] else None,
            rates=tuple(values["rates"]),
            seeds=values["seeds"],
            product=values["product"],
            changed=values["changed"],
            settings=settings,
            reference=values["reference"],
        )

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of all coordinates, in the order in which settings have them."""
        return tuple(dict.fromkeys(name for setting in self.settings for name in setting.at))


def _rows(rows: Sequence[str], settings: Sequence[PlannedSetting]) -> tuple[str, ...]:
    """Extend the coordinates of a row until no two settings share a place."""
    names = list(rows)
    for name in dict.fromkeys(name for setting in settings for name in setting.at):
        places = [tuple(s.at.get(n) for n in (*names, DATASET)) for s in settings]
        if len({*places}) == len(places):
            break
        if name not in names and name != DATASET:
            names.append(name)
    return tuple(names)


def read_studies(root: Path, names: Sequence[str] = ()) -> list[PlannedStudy]:
    """Read the studies that have been planned under a folder.

    Args:
      root: folder that `fmi-jax study run` was given.
      names: names of the wanted studies, in order; empty: all, by name.

    Raises:
      UserError: there are no studies, or a file is not the plan of a study.
      UsageError: a wanted study is not there.
    """
    files = {path.stem: path for path in sorted(root.glob("*.json"))}
    if not files:
        raise UserError(
            f"{root} holds no study: expected the --root of `fmi-jax study run`, in which it"
            " leaves a file <study>.json."
        )
    for name in names:
        if name not in files:
            raise unknown_name(f"study in {root}:", name, files)
    return [read_plan(files[name]) for name in names or files]


def read_plan(path: Path) -> PlannedStudy:
    """The study that a file describes; `UserError` where it is damaged or a later version's."""
    way_out = (
        "expected the file as `fmi-jax study run` writes it. Delete it and give that command again:"
        " no finished cell is run twice"
    )
    with sealed.reading(path, "the plan of a study", way_out):
        values = sealed.read(path, FORMAT)
        if (number := values.get("format", 1)) < FORMAT:
            values = older.plan(values, number)
        return PlannedStudy.from_json(values)
