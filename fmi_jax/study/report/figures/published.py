"""Scatter plot of our numbers against the published ones, a panel for each data set."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fmi_jax.drawing.style import GREY, short
from fmi_jax.drawing.wording import number
from fmi_jax.study.report import drawing
from fmi_jax.study.report.comparisons import Agreement
from fmi_jax.study.report.drawing import PLAIN, TWO_COLUMNS, Drawn, Look
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import Sample, bounds, covered

_SIDE = TWO_COLUMNS / 4


def draw(
    numbers: Sequence[Number],
    samples: Mapping[Number, Sample],
    found: Sequence[Agreement],
    looks: Mapping[str, Look],
    lines: str,
    fills: str | None,
) -> Drawn:
    """Draw every number that also has a published one.

    Args:
      numbers: numbers of the table.
      samples: samples that give the intervals.
      found: agreement on each data set, one for each panel.
      looks: look of each value of the coordinate `lines`.
      lines: coordinate that a colour and a marker stand for.
      fills: coordinate whose first value is drawn filled and others not; None: all are filled.
    """
    both = [number for number in numbers if not np.isnan(number.difference)]
    return drawing.save(
        "published",
        "Ours against the published numbers; on the line both are equal. Vertical bars: 95%"
        f" intervals over {covered(both)}; horizontal ones: the published standard deviation. Rank"
        " correlations are between the means over the rows of each model.",
        lambda: _figure(both, samples, found, looks, lines, fills),
    )


def _figure(
    numbers: Sequence[Number],
    samples: Mapping[Number, Sample],
    found: Sequence[Agreement],
    looks: Mapping[str, Look],
    lines: str,
    fills: str | None,
) -> Figure:
    first, *others = dict.fromkeys(n.setting.at.get(fills or "", "") for n in numbers)
    names = [name for name in looks if any(n.setting.at.get(lines) == name for n in numbers)]
    down, across = drawing.columns(len(found), 4)
    height = down * (_SIDE + 0.25) + 0.2 + 0.16 * -(-(len(names) + 2) // 5)
    figure, axes = drawing.panels((max(across, 2) * _SIDE, height), down, across, len(found))
    for ax, agreement in zip(axes, found, strict=False):
        for one in (n for n in numbers if n.setting.dataset == agreement.dataset):
            look = looks.get(one.setting.at.get(lines, ""), PLAIN)
            hollow = one.setting.at.get(fills or "") in others
            _point(ax, one, samples.get(one), look, hollow)
        _frame(ax, agreement)
    for ax in axes[::across]:
        ax.set_ylabel("here")
    handles = [Line2D([], [], label=short(name), **drawing.filled(looks[name])) for name in names]
    if others:
        handles += [
            Line2D([], [], label=short(name), **drawing.filled(PLAIN, inside))
            for name, inside in ((first, None), (", ".join(others), "white"))
        ]
    drawing.key(figure, handles, 6)
    return figure


def _point(ax: Axes, one: Number, sample: Sample | None, look: Look, hollow: bool) -> None:
    published = one.setting.published
    assert published is not None
    x, y, std = published.mean, one.centre, published.std or 0.0
    ax.plot((x - std, x + std), (y, y), color=look.colour, linewidth=0.6, alpha=0.7)
    ax.plot((x, x), bounds(sample), color=look.colour, linewidth=0.6, alpha=0.7)
    ax.plot(x, y, **drawing.filled(look, "white" if hollow else None))


def _frame(ax: Axes, agreement: Agreement) -> None:
    """Draw equal axes with the line of equality, and write the rank correlation."""
    low = min(ax.get_xlim()[0], ax.get_ylim()[0])
    high = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot((low, high), (low, high), color=GREY, linewidth=0.6, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    drawing.few_ticks(ax)
    drawing.few_ticks(ax, axis="y")
    ax.set_title(short(agreement.dataset, 20))
    text = f"n = {agreement.n}"
    if agreement.ranks is not None:
        tau = f"\N{GREEK SMALL LETTER TAU} = {number(agreement.ranks.tau, 2)}"
        text = f"{tau} ({agreement.models} models), {text}"
    ax.set_xlabel(f"published\n{text}")
