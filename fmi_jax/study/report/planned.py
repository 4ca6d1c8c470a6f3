"""What was planned: `<study>.json`, as `fmi_jax.study.plan.Plan.write` leaves it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fmi_jax.artifacts import older
from fmi_jax.artifacts.result import Shows
from fmi_jax.errors import UserError, unknown_name
from fmi_jax.study.files import FORMAT
from fmi_jax.study.published import Published
from fmi_jax.study.spec import Figure

DATASET = "dataset"
"""The coordinate that stands across the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One experiment; see `fmi_jax.study.cells.Cell`.

    Attributes:
      id: its name, and that of its folder.
      learning_rate, seed: what it was given of the study.
      of: name of the cell whose network it analyses.
    """

    id: str
    learning_rate: float | None
    seed: int | None
    of: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlannedSetting:
    """One number, point or panel; see `fmi_jax.study.spec.Setting`.

    Attributes:
      at: where it stands.
      protocol: name of the protocol; None where it cannot be run.
      shows: how the report shows the result.
      label: an analysis's headline number in words; empty if there is none.
      published: the number as it was printed, if it was.
      why_not: why it cannot be run.
      cells: all that its number could need, by rate and then by seed.
    """

    at: Mapping[str, str]
    protocol: str | None
    shows: Shows
    label: str
    published: Published | None
    why_not: str
    cells: tuple[PlannedCell, ...]

    @property
    def dataset(self) -> str:
        """The column of the table."""
        return self.at.get(DATASET, "")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlannedStudy:
    """A study as it is being run; see `fmi_jax.study.spec.Study` and `Plan`.

    Attributes:
      name, title, note, rows, figure, rates, seeds: as of the study.
      changed: config fields that are not as the study has them.
      settings: in the order of the rows.
    """

    name: str
    title: str
    note: str
    rows: tuple[str, ...]
    figure: Figure | None
    rates: tuple[float, ...]
    seeds: int
    changed: Mapping[str, str]
    settings: tuple[PlannedSetting, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `Plan.to_json`, of this version."""
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
            changed=values["changed"],
            settings=settings,
        )

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of all coordinates, in the order in which settings have them."""
        return tuple(dict.fromkeys(name for setting in self.settings for name in setting.at))

    @property
    def datasets(self) -> tuple[str, ...]:
        """The columns of the table, in the order of the settings."""
        return tuple(dict.fromkeys(setting.dataset for setting in self.settings))


def _rows(rows: Sequence[str], settings: Sequence[PlannedSetting]) -> tuple[str, ...]:
    """The coordinates of a row, with those without which two settings would share a place."""
    names = list(rows)
    for name in dict.fromkeys(name for setting in settings for name in setting.at):
        places = [tuple(s.at.get(n) for n in (*names, DATASET)) for s in settings]
        if len({*places}) == len(places):
            break
        if name not in names and name != DATASET:
            names.append(name)
    return tuple(names)


def read_studies(root: Path, names: Sequence[str] = ()) -> list[PlannedStudy]:
    """The studies that have been planned under a folder.

    Args:
      root: the folder that `fmi-jax study run` was given.
      names: those that are wanted, in that order; empty: all, by name.

    Raises:
      UserError: there are none, or a file is not what a study leaves.
      UsageError: one that is wanted is not there.
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
    return [_read(files[name]) for name in names or files]


def _read(path: Path) -> PlannedStudy:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if older.format_of(values, FORMAT, path) < FORMAT:
            values = older.plan(values)
        return PlannedStudy.from_json(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the plan of a study ({type(error).__name__}: {error}); expected the"
            " file as `fmi-jax study run` writes it. Delete it and give that command again: no"
            " finished cell is run twice."
        ) from error
