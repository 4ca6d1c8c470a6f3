"""Table of a study: rows by data sets, our numbers beside the published ones."""

import dataclasses
import math
from collections.abc import Sequence

from fmi_jax.study.planned import PlannedStudy
from fmi_jax.study.report.numbers import Number
from fmi_jax.tasks.registry import TASKS, describe


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One number of the table, in its place.

    Attributes:
      number: number of the cell, which may be missing.
      best: True if it is the best of its column.
      published_best: True if its published number is the best of its column.
    """

    number: Number
    best: bool
    published_best: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One data set of the table.

    Attributes:
      dataset: name of the data set.
      metric: metric of the data set, in words; empty while it is not known.
    """

    dataset: str
    metric: str


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
    def opens(self) -> bool:
        """Test whether it is the first row of a block."""
        return len(self.shown) > 1 and bool(self.shown[0])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Table of a study, with data sets as columns.

    Attributes:
      coordinates: names of the coordinates that make a row.
      columns, rows: columns and rows, in the order of the study.
    """

    coordinates: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def numbers(self) -> list[Number]:
        """Numbers of all cells, row by row."""
        return [cell.number for row in self.rows for cell in row.cells if cell is not None]

    @property
    def is_published(self) -> bool:
        """Test whether any number has a published one beside it."""
        return any(number.setting.published is not None for number in self.numbers)

    def column(self, dataset: str) -> list[Cell]:
        """Cells of a data set, from the top."""
        place = [column.dataset for column in self.columns].index(dataset)
        return [cell for row in self.rows if (cell := row.cells[place]) is not None]

    def title(self, number: Number) -> str:
        """Name of a number's row, in words."""
        at = number.setting.at
        return " ".join(at[name] for name in self.coordinates if name in at) or "all"


def make_table(study: PlannedStudy, numbers: Sequence[Number]) -> Table:
    """Make the table of all numbers except speeds, which do not depend on a data set."""
    numbers = [number for number in numbers if number.setting.shows != "speed"]
    datasets = tuple(dict.fromkeys(number.setting.dataset for number in numbers))
    by_place = {(_row(study, number), number.setting.dataset): number for number in numbers}
    best, published_best = {}, {}
    for dataset in datasets:
        column = [number for number in numbers if number.setting.dataset == dataset]
        best[dataset] = _best(column)
        published_best[dataset] = _best_published(column)
    rows, above = [], ()
    for names in dict.fromkeys(row for row, _ in by_place):
        same = [True]
        for name, before in zip(names, above or (None,) * len(names), strict=True):
            same.append(same[-1] and name == before)
        shown = tuple("" if s else name for name, s in zip(names, same[1:], strict=True))
        cells = tuple(
            None
            if (number := by_place.get((names, dataset))) is None
            else Cell(
                number=number,
                best=number is best[dataset],
                published_best=number is published_best[dataset],
            )
            for dataset in datasets
        )
        rows.append(Row(names=names, shown=shown, cells=cells))
        above = names
    columns = tuple(Column(dataset=d, metric=_metric(numbers, d)) for d in datasets)
    return Table(coordinates=study.rows, columns=columns, rows=tuple(rows))


def _row(study: PlannedStudy, number: Number) -> tuple[str, ...]:
    return tuple(number.setting.at.get(name, "") for name in study.rows)


def _best(numbers: Sequence[Number]) -> Number | None:
    valued = [number for number in numbers if number.runs and not math.isnan(number.mean)]
    # Only numbers of one metric can be ranked.
    if len({number.metric for number in valued}) != 1:
        return None
    return max(valued, key=lambda number: number.score)


def _best_published(numbers: Sequence[Number]) -> Number | None:
    printed = [(n, n.setting.published) for n in numbers if n.setting.published is not None]
    if len({published.metric for _, published in printed}) != 1:
        return None
    best, _ = max(printed, key=lambda pair: describe(pair[1].metric).score(pair[1].mean))
    return best


def _metric(numbers: Sequence[Number], dataset: str) -> str:
    """Metric that judges a data set, as far as its numbers or the published ones tell."""
    column = [number for number in numbers if number.setting.dataset == dataset]
    for number in column:
        if number.runs:
            return number.label
    for number in column:
        published = number.setting.published
        if published is not None and any(published.metric in t.metrics for t in TASKS.values()):
            return describe(published.metric).label
    return next((n.setting.label for n in column if n.setting.label), "")
