"""Cost of a study: the time that its cells took."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from fmi_jax.study.planned import PlannedCell, PlannedStudy
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.outcomes import Outcome
from fmi_jax.study.state import State


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CellCost:
    """Cost of one finished cell.

    Attributes:
      planned: cell in the plan.
      outcome: outcome of the cell.
      names: coordinates of its table row, data set last.
      used: True if a number is made of it; False for a learning rate that was not chosen.
    """

    planned: PlannedCell
    outcome: Outcome
    names: tuple[str, ...]
    used: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowCost:
    """Cost of the finished cells of one row, or of all rows.

    Attributes:
      names: coordinates of the row.
      cells: number of cells, including those whose learning rate was not chosen and those that
        others follow.
      seconds: time by phase, over all cells.
      total: time over all phases and cells.
      to_best: mean time to the best score over the cells that train; None if none does.
    """

    names: tuple[str, ...]
    cells: int
    seconds: Mapping[str, float]
    total: float
    to_best: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cost:
    """Cost of a study so far.

    Attributes:
      phases: names of the phases, in the order in which they first occur.
      rows: cost of each row of the table.
      everything: cost of all rows together; a cell that is in two of them counts once.
      cells: cost of every finished cell.
    """

    phases: tuple[str, ...]
    rows: tuple[RowCost, ...]
    everything: RowCost
    cells: tuple[CellCost, ...]


def cost_of(study: PlannedStudy, numbers: Sequence[Number]) -> Cost:
    """Compute the cost of the finished cells, by row and for each cell."""
    rows: dict[tuple[str, ...], dict[str, CellCost]] = {}
    for number in numbers:
        setting, used = number.setting, number.used
        names = tuple(setting.at.get(name, "") for name in study.rows)
        for planned, outcome in zip(setting.cells, number.outcomes, strict=True):
            if outcome.state is State.DONE:
                rows.setdefault(names, {})[outcome.id] = CellCost(
                    planned=planned,
                    outcome=outcome,
                    names=(*names, setting.dataset),
                    used=outcome in used,
                )
        for outcome in number.followed:  # its rate and seed stand in the plan that trained it
            if outcome.state is State.DONE:
                rows.setdefault(names, {})[outcome.id] = CellCost(
                    planned=PlannedCell(id=outcome.id, learning_rate=None, seed=None, of=None),
                    outcome=outcome,
                    names=(*names, setting.dataset),
                    used=False,
                )
    cells = {id_: cell for row in rows.values() for id_, cell in row.items()}
    phases = dict.fromkeys(phase for cell in cells.values() for phase in cell.outcome.seconds)
    return Cost(
        phases=tuple(phases),
        rows=tuple(_row(names, row.values(), phases) for names, row in rows.items()),
        everything=_row((), cells.values(), phases),
        cells=tuple(cells.values()),
    )


def _row(names: tuple[str, ...], cells: Collection[CellCost], phases: Iterable[str]) -> RowCost:
    outcomes = [cell.outcome for cell in cells]
    to_best = [best.seconds for o in outcomes if (best := o.finished.best) is not None]
    return RowCost(
        names=names,
        cells=len(outcomes),
        seconds={phase: sum(o.seconds.get(phase, 0.0) for o in outcomes) for phase in phases},
        total=sum(outcome.total for outcome in outcomes),
        to_best=sum(to_best) / len(to_best) if to_best else None,
    )
