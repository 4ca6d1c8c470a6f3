"""The table of a study: rows by data sets, ours beside the published numbers."""

import dataclasses
import math
from collections.abc import Sequence

from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.planned import PlannedStudy
from fmi_jax.tasks.metrics import METRICS, describe, selection_score


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One number in its place.

    Attributes:
      number: the number, which may be missing.
      best: whether it is the best of its column.
      published_best: whether the published one is the best of its column.
    """

    number: Number
    best: bool
    published_best: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """A data set.

    Attributes:
      dataset: its name.
      metric: what is measured on it, in words; empty while that is not known.
    """

    dataset: str
    metric: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One line.

    Attributes:
      names: its coordinates.
      shown: the same, blank where the line above has them too.
      cells: one for each column; None: the study has no such setting.
    """

    names: tuple[str, ...]
    shown: tuple[str, ...]
    cells: tuple[Cell | None, ...]

    @property
    def opens(self) -> bool:
        """Whether it is the first of a block."""
        return len(self.shown) > 1 and bool(self.shown[0])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows by data sets.

    Attributes:
      coordinates: names of what makes a row.
      columns, rows: in the order of the study.
    """

    coordinates: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def numbers(self) -> list[Number]:
        """Of all cells, row by row."""
        return [cell.number for row in self.rows for cell in row.cells if cell is not None]

    @property
    def is_published(self) -> bool:
        """Whether any number stands beside a published one."""
        return any(number.setting.published is not None for number in self.numbers)

    def column(self, dataset: str) -> list[Cell]:
        """The cells of a data set, from above."""
        place = [column.dataset for column in self.columns].index(dataset)
        return [cell for row in self.rows if (cell := row.cells[place]) is not None]

    def title(self, number: Number) -> str:
        """The row of a number in words."""
        at = number.setting.at
        return " ".join(at[name] for name in self.coordinates if name in at) or "all"


def make_table(study: PlannedStudy, numbers: Sequence[Number]) -> Table:
    """The table of everything but speeds, which say nothing of a data set."""
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
    best, _ = max(printed, key=lambda pair: selection_score(pair[1].metric, pair[1].mean))
    return best


def _metric(numbers: Sequence[Number], dataset: str) -> str:
    """What a data set is judged by, as far as its numbers or the published ones tell."""
    column = [number for number in numbers if number.setting.dataset == dataset]
    for number in column:
        if number.runs:
            return number.label
    for number in column:
        published = number.setting.published
        if published is not None and published.metric in METRICS:
            return next(iter(describe(published.metric).labels.values()))
    return next((n.setting.label for n in column if n.setting.label), "")
