"""Table of a study: rows by data sets, our numbers beside the published ones."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fmi_jax.study.planned import PlannedStudy
from fmi_jax.study.report.numbers import Number
from fmi_jax.tasks.registry import TASKS, describe


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One number of the table, in its place.

    Attributes:
      number: number of the cell, which may be missing.
      chosen: True if validation would choose its row in the column.
      best: True if it has the best test mean of its column.
      published_best: True if its published number is the best of its column.
    """

    number: Number
    chosen: bool
    best: bool
    published_best: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row of the table.

    Attributes:
      names: coordinates of the row.
      shown: coordinates of the row, blank if they are the same as in the row above.
      cells: cell in each column; None: the study has no such setting.
    """

    names: tuple[str, ...]
    shown: tuple[str, ...]
    cells: tuple[Cell | None, ...]

    @property
    def numbers(self) -> list[Number]:
        """Numbers of the row's cells."""
        return [cell.number for cell in self.cells if cell is not None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Table of a study, with data sets as columns.

    Attributes:
      coordinates: names of the coordinates that make a row.
      columns: metric of each data set in words, empty while it is not known; in the order of the
        study.
      rows: rows, in the order of the study.
    """

    coordinates: tuple[str, ...]
    columns: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def numbers(self) -> list[Number]:
        """Numbers of all cells, row by row."""
        return [number for row in self.rows for number in row.numbers]

    @property
    def is_published(self) -> bool:
        """Test whether any number has a published one beside it."""
        return any(number.setting.published is not None for number in self.numbers)

    def column(self, dataset: str) -> list[Cell]:
        """Cells of a data set, from the top."""
        place = [*self.columns].index(dataset)
        return [cell for row in self.rows if (cell := row.cells[place]) is not None]

    def title(self, number: Number) -> str:
        """Name of a number's row, in words."""
        at = number.setting.at
        return " ".join(at[name] for name in self.coordinates if name in at) or "all"


def make_table(study: PlannedStudy, numbers: Sequence[Number]) -> Table:
    """Make the table of all numbers except speeds, which do not depend on a data set."""
    numbers = [number for number in numbers if number.setting.shows != "speed"]
    columns: dict[str, list[Number]] = {}
    places: dict[tuple[str, ...], dict[str, Number]] = {}
    for number in numbers:
        names = tuple(number.setting.at.get(name, "") for name in study.rows)
        columns.setdefault(number.setting.dataset, []).append(number)
        places.setdefault(names, {})[number.setting.dataset] = number
    chosen = {
        _best([(n, n.metric, n.val) for n in column if not math.isnan(n.val)])
        for column in columns.values()
    }
    best = {
        _best([(n, n.metric, n.mean) for n in column if not math.isnan(n.mean)])
        for column in columns.values()
    }
    published_best = {
        _best([(n, p.metric, p.mean) for n in column if (p := n.setting.published) is not None])
        for column in columns.values()
    }
    rows, above = [], ()
    for names, row in places.items():
        cells = tuple(
            None
            if number is None
            else Cell(
                number=number,
                chosen=number in chosen,
                best=number in best,
                published_best=number in published_best,
            )
            for number in map(row.get, columns)
        )
        shown = ("" if names[:i] == above[:i] else names[i - 1] for i in range(1, len(names) + 1))
        rows.append(Row(names=names, shown=tuple(shown), cells=cells))
        above = names
    return Table(
        coordinates=study.rows,
        columns={dataset: _metric(column) for dataset, column in columns.items()},
        rows=tuple(rows),
    )


def _best(measured: Sequence[tuple[Number, str, float]]) -> Number | None:
    """Find the number with the best value; None unless all values are of one metric.

    Args:
      measured: a number; name of a metric; value of that metric.
    """
    if len({metric for _, metric, _ in measured}) != 1:
        return None
    return max(measured, key=lambda one: describe(one[1]).score(one[2]))[0]


def _metric(column: Sequence[Number]) -> str:
    """Metric that judges a data set, as far as its numbers or the published ones tell."""
    labels = [number.label for number in column if number.runs]
    labels += [
        describe(published.metric).label
        for number in column
        if (published := number.setting.published) is not None
        and any(task.find_metric(published.metric) for task in TASKS.values())
    ]
    labels += [number.setting.label for number in column]
    return next(filter(None, labels), "")
