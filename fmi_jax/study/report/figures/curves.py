"""Curves over an ordered coordinate, a line for each model or data set."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fmi_jax.drawing.style import short
from fmi_jax.study.planned import DATASET, Figure as FigureSpec
from fmi_jax.study.report import drawing
from fmi_jax.study.report.drawing import ONE_COLUMN, TWO_COLUMNS, Drawn, Look
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import Sample, bounds, covered

_HEIGHT = 1.55  # height of a panel, in inches
_LETTER = 0.08  # width of a title's letter, in inches
_LABELLED = 5  # largest number of lines that are named at their ends
_APART = 0.1  # distance between two such names, as a fraction of the height

_Lines = dict[str, list[Number]]


def draw(
    spec: FigureSpec,
    numbers: Sequence[Number],
    samples: Mapping[Number, Sample],
    looks: Mapping[str, Look],
) -> Drawn:
    """Draw the numbers over `spec.x`, in the order of the settings.

    Coordinates other than x, that of the lines and the data set make rows of panels.

    Args:
      spec: coordinates of the figure.
      numbers: numbers of the study; those without a value leave a gap.
      samples: samples that give the bands.
      looks: look of each value of the coordinate `spec.lines`.
    """
    return drawing.save(
        "curves",
        f"Test metric: the mean over the seeds, and its 95% interval over {covered(numbers)} as a"
        " band.",
        lambda: _figure(spec, numbers, samples, looks),
    )


def _figure(
    spec: FigureSpec,
    numbers: Sequence[Number],
    samples: Mapping[Number, Sample],
    looks: Mapping[str, Look],
) -> Figure:
    xs = list(dict.fromkeys(n.setting.at[spec.x] for n in numbers if spec.x in n.setting.at))
    panels = _panels(spec, numbers)
    rows = list(dict.fromkeys(row for row, _ in panels))
    lines_of = max(map(len, panels.values()))
    ends = {line[-1].setting.at[spec.x] for lines in panels.values() for line in lines.values()}
    direct = len(ends) == 1 and lines_of <= _LABELLED
    # Data sets are side by side; with many lines only two, so that they can be told apart.
    side_by_side = len(panels) // len(rows)
    down, across = drawing.columns(len(panels), min(side_by_side, 2 if lines_of > _LABELLED else 4))
    width = ONE_COLUMN if across == 1 else TWO_COLUMNS
    height = down * _HEIGHT + (0.4 if direct else 0.75)
    figure, axes = drawing.panels((width, height), down, across, len(panels))
    for k, ((row, dataset), lines) in enumerate(panels.items()):
        ax = axes[k]
        last = [
            (name, _line(ax, line, xs, spec.x, samples, looks[name]))
            for name, line in lines.items()
        ]
        labels = {name: [n.label for n in line if n.runs] for name, line in lines.items()}
        metrics = {name: found[0] for name, found in labels.items() if found}
        if direct and k % across == across - 1:
            _name_ends(ax, last, looks, metrics if spec.lines == DATASET else {})
        title = " · ".join(filter(None, (dataset, *row)))
        ax.set_title(short(title, int((width / across - 0.5) / _LETTER)))
        one = next(iter(metrics.values()), "")
        ax.set_ylabel("Test metric" if spec.lines == DATASET else textwrap.fill(one, 26))
        ax.set_xlabel(spec.x_label or spec.x)
        _frame(ax, xs)
    if not direct:
        shown = dict.fromkeys(name for lines in panels.values() for name in lines)
        handles = [
            Line2D([], [], color=looks[name].colour, label=short(name),
                   **_style(looks[name])) for name in shown
        ]  # fmt: skip
        drawing.key(figure, handles, 8 if width == TWO_COLUMNS else 4)
    return figure


def _panels(
    spec: FigureSpec, numbers: Sequence[Number]
) -> dict[tuple[tuple[str, ...], str], _Lines]:
    """Group numbers into lines by name, and panels by other coordinates and data set."""
    own = {spec.x, spec.lines, DATASET}
    panels: dict[tuple[tuple[str, ...], str], _Lines] = {}
    for number in numbers:
        at = number.setting.at
        if spec.x not in at or spec.lines not in at:
            continue
        row = tuple(value for name, value in at.items() if name not in own)
        dataset = "" if spec.lines == DATASET else number.setting.dataset
        panels.setdefault((row, dataset), {}).setdefault(at[spec.lines], []).append(number)
    return panels


def _style(look: Look) -> dict:
    return {
        "linestyle": look.line, "marker": look.marker, "markersize": 3.4,
        "markeredgecolor": "white", "markeredgewidth": 0.4,
    }  # fmt: skip


def _line(
    ax: Axes, line: Sequence[Number], xs: Sequence[str], x: str,
    samples: Mapping[Number, Sample], look: Look,
) -> tuple[float, float]:  # fmt: skip
    """Draw a line with its band; returns its last point that has a value."""
    where = np.array([xs.index(number.setting.at[x]) for number in line])
    means = np.array([number.mean for number in line])
    low, high = np.array([bounds(samples.get(number)) for number in line]).T
    ax.fill_between(where, low, high, color=look.colour, alpha=0.13, linewidth=0)
    ax.plot(where, means, color=look.colour, **_style(look))
    there = np.flatnonzero(~np.isnan(means))
    return (float(where[there[-1]]), float(means[there[-1]])) if len(there) else (np.nan, np.nan)


def _name_ends(
    ax: Axes,
    ends: Sequence[tuple[str, tuple[float, float]]],
    looks: Mapping[str, Look],
    metrics: Mapping[str, str],
) -> None:
    """Write the name of each line at its end; two that would overlap are pushed apart."""
    low, high = ax.get_ylim()
    apart = _APART * (high - low) * (2 if metrics else 1)
    free = -np.inf
    for name, (x, y) in sorted(ends, key=lambda end: end[1][1]):
        if np.isnan(y):
            continue
        at = max(y, free)
        free = at + apart
        text = short(name, 20) + (f"\n{short(metrics[name], 26)}" if name in metrics else "")
        ax.annotate(
            text, (x, at), (6, 0), textcoords="offset points", va="center",
            color=looks[name].colour, annotation_clip=False, fontsize=6.5,
        )  # fmt: skip


def _frame(ax: Axes, xs: Sequence[str]) -> None:
    every = -(-len(xs) // 8)
    ax.set_xticks(range(0, len(xs), every), [short(x, 12) for x in xs[::every]])
    if max(map(len, xs)) > 4:
        ax.tick_params(axis="x", labelrotation=40)
    ax.set_xlim(-0.4, len(xs) - 0.6)
    drawing.few_ticks(ax, 5, axis="y")
    ax.grid(axis="y", color=drawing.GRID, linewidth=0.5)
    ax.set_axisbelow(True)
