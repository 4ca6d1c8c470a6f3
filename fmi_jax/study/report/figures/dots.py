"""Dot plot: a value for each row of the table, a panel for each data set."""

import textwrap
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmi_jax.drawing.style import GREY, short
from fmi_jax.study.report import drawing
from fmi_jax.study.report.drawing import PLAIN, TWO_COLUMNS, Drawn, Look
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import Sample, bounds, covered
from fmi_jax.study.report.table import Cell, Table


def draw(
    table: Table, samples: Mapping[Number, Sample], looks: Mapping[str, Look], lines: str
) -> Drawn:
    """Draw the numbers of a table with their intervals; published ones as hollow markers.

    Args:
      table: table whose rows and columns the figure has.
      samples: samples that give the intervals.
      looks: look of each value of the coordinate `lines`.
      lines: coordinate that a colour stands for.
    """
    median = any(number.statistic == "median" for number in table.numbers)
    shown = (
        "median over the seeds, and the 95% interval of the mean"
        if median
        else ("mean over the seeds, and its 95% interval")
    )
    return drawing.save(
        "dots",
        f"Test metric: the {shown} over {covered(table.numbers)}."
        + (" Hollow: as published." if table.is_published else ""),
        lambda: _figure(table, samples, looks, lines),
    )


def _figure(
    table: Table, samples: Mapping[Number, Sample], looks: Mapping[str, Look], lines: str
) -> Figure:
    shown = [row for row in table.rows if any(map(_has_point, row.cells))]
    rows = [row.names for row in shown]
    down, across = drawing.columns(len(table.columns), 4)
    width = min(TWO_COLUMNS, 1.6 + 1.6 * across)
    height = down * (drawing.row_axis_height(rows) + 0.55) + 0.3
    figure, axes = drawing.panels((width, height), down, across, len(table.columns))
    for i, (ax, dataset) in enumerate(zip(axes, table.columns, strict=False)):
        places = drawing.row_axis(ax, rows)
        ax.tick_params(labelleft=i % across == 0)
        ax.set_title(short(dataset, 20))
        ax.set_xlabel(textwrap.fill(table.columns[dataset], 26))
        drawing.few_ticks(ax)
        for row in shown:
            if (cell := row.cells[i]) is not None:
                number = cell.number
                look = looks.get(number.setting.at.get(lines, ""), PLAIN)
                _point(ax, places[row.names], number, samples.get(number), look)
        ax.margins(x=0.08)
    if table.is_published:
        drawing.key_of_published(figure)
    return figure


def _has_point(cell: Cell | None) -> bool:
    """Test whether a setting has a value on the axis, missing or not; analyses have none here."""
    if cell is None:
        return False
    setting = cell.number.setting
    return setting.shows == "score" or setting.published is not None


def _point(ax: Axes, y: float, number: Number, sample: Sample | None, look: Look) -> None:
    if number.runs:
        ax.plot(bounds(sample), (y, y), color=look.colour, linewidth=1.1)
        ax.plot(number.centre, y, **drawing.filled(look))
    published = number.setting.published
    if published is not None:
        ax.plot(published.mean, y, **drawing.hollow(look))
        if published.std:
            ends = (published.mean - published.std, published.mean + published.std)
            ax.plot(ends, (y, y), color=GREY, linewidth=0.5, zorder=1)
