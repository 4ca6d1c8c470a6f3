"""Cost of a study: the time that its cells took."""

import dataclasses
from collections.abc import Mapping, Sequence

from fmi_jax.study.planned import PlannedStudy
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.outcomes import Outcome
from fmi_jax.study.state import State


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CellCost:
    """Cost of one finished cell.

    Attributes:
      outcome: outcome of the cell.
      names: coordinates of its table row, data set last.
      learning_rate, seed: values that the study chose for the cell.
      device: hardware that it ran on.
      seconds: wall-clock time by phase.
      to_best: training time to the best validation score; None for an analysis.
    """

    outcome: Outcome
    names: tuple[str, ...]
    learning_rate: float | None
    seed: int | None
    device: str
    seconds: Mapping[str, float]
    to_best: float | None

    @property
    def total(self) -> float:
        """Time of all phases together."""
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowCost:
    """Cost of the finished cells of one row, or of all rows.

    Attributes:
      names: coordinates of the row.
      cells: number of cells, including those whose learning rate was not chosen.
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
        setting = number.setting
        names = tuple(setting.at.get(name, "") for name in study.rows)
        for planned, outcome in zip(setting.cells, number.outcomes, strict=True):
            if outcome.state is State.DONE:
                rows.setdefault(names, {})[outcome.id] = CellCost(
                    outcome=outcome,
                    names=(*names, setting.dataset),
                    learning_rate=planned.learning_rate,
                    seed=planned.seed,
                    device=device_of(outcome),
                    seconds=outcome.seconds,
                    to_best=_to_best(outcome),
                )
    cells = {id_: cell for row in rows.values() for id_, cell in row.items()}
    phases = tuple(dict.fromkeys(phase for cell in cells.values() for phase in cell.seconds))
    return Cost(
        phases=phases,
        rows=tuple(_row(names, list(row.values()), phases) for names, row in rows.items()),
        everything=_row((), list(cells.values()), phases),
        cells=tuple(cells.values()),
    )


def _row(names: tuple[str, ...], cells: Sequence[CellCost], phases: Sequence[str]) -> RowCost:
    to_best = [cell.to_best for cell in cells if cell.to_best is not None]
    return RowCost(
        names=names,
        cells=len(cells),
        seconds={phase: sum(cell.seconds.get(phase, 0.0) for cell in cells) for phase in phases},
        total=sum(cell.total for cell in cells),
        to_best=sum(to_best) / len(to_best) if to_best else None,
    )


def _to_best(outcome: Outcome) -> float | None:
    best = None if outcome.result is None else outcome.result.best
    return None if best is None else best.seconds


def device_of(outcome: Outcome) -> str:
    """Describe the hardware that a finished cell ran on: "4 x NVIDIA H100"."""
    assert outcome.result is not None
    found = outcome.result.device
    kind, count = str(found.get("kind", "unknown")), found.get("count", 1)
    return kind if count == 1 else f"{count} \N{MULTIPLICATION SIGN} {kind}"
