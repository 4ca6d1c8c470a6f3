"""What the cells of a study took."""

import dataclasses
from collections.abc import Mapping, Sequence

from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.outcomes import Outcome, State
from fmi_jax.study.report.planned import PlannedStudy


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CellCost:
    """One finished cell.

    Attributes:
      outcome: the cell.
      names: the row of the table that it is of, data set last.
      learning_rate, seed: what it was given of the study.
      device: what it ran on.
      seconds: wall-clock time by phase.
      to_best: training time to the best validation score; None of an analysis.
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
        """All phases together."""
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowCost:
    """The finished cells of one row, or of all.

    Attributes:
      names: coordinates of the row.
      cells: how many, those of learning rates that were not chosen among them.
      seconds: by phase, of all cells together; `total`: of all phases.
      to_best: of the cells that train, in the mean; None without any.
    """

    names: tuple[str, ...]
    cells: int
    seconds: Mapping[str, float]
    total: float
    to_best: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cost:
    """What a study took so far.

    Attributes:
      phases: names of the phases, in the order in which they first occur.
      rows: by row of the table.
      everything: all rows together; a cell that is in two of them counts once.
      cells: every finished cell.
    """

    phases: tuple[str, ...]
    rows: tuple[RowCost, ...]
    everything: RowCost
    cells: tuple[CellCost, ...]


def cost_of(study: PlannedStudy, numbers: Sequence[Number]) -> Cost:
    """What the finished cells took, by row and each alone."""
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
    return None if outcome.result is None else outcome.result.best.seconds


def device_of(outcome: Outcome) -> str:
    """What a finished cell ran on: "4 x NVIDIA H100"."""
    found = outcome.result.device if outcome.result else (outcome.analysis or {})["device"]
    kind, count = str(found.get("kind", "unknown")), found.get("count", 1)
    return kind if count == 1 else f"{count} \N{MULTIPLICATION SIGN} {kind}"
