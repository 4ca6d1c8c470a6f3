"""Significance matrices: which models differ, a triangular matrix for each comparison."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fmi_jax.drawing.style import BLUE, VERMILION, short
from fmi_jax.drawing.wording import signed
from fmi_jax.study.planned import DATASET
from fmi_jax.study.report import drawing
from fmi_jax.study.report.comparisons import LEVEL, Comparison
from fmi_jax.study.report.drawing import TWO_COLUMNS, Drawn
from fmi_jax.tasks.registry import describe

# Orange for less, blue for more: the colour-blind can tell them apart.
_BETTER_IS_BLUE = LinearSegmentedColormap.from_list("better", [VERMILION, "#F4F4F4", BLUE])
_SIDE = 0.29  # side of a square, in inches
_LEFT, _BELOW = 0.85, 0.7  # space for the names beside and below the squares, in inches
_TALLEST = 10.7  # largest height of a figure in inches, to fit on a page


def draw(found: Sequence[Comparison]) -> Drawn:
    """Draw differences of all pairs of models; significant ones are bold and framed.

    Args:
      found: comparisons, one for each panel; as many are drawn as fit on a page.
    """
    shown = _fitting(found)
    caption = (
        "Difference of the test metric in points (hundredths): the model on the left less that"
        f" below. Bold and framed: p < {LEVEL:g} after Holm's correction within the panel. Blue is"
        " better, orange worse."
    )
    if len(shown) < len(found):
        caption += f" The first {len(shown)} of {len(found)} comparisons."
    return drawing.save("significance", caption, lambda: _figure(shown))


def _fitting(found: Sequence[Comparison]) -> Sequence[Comparison]:
    """Select the first comparisons that fit on a page; at least one row of panels."""
    across = _across(found)
    height, rows = 0.0, 0
    for start in range(0, len(found), across):
        height += _above(found) + _tall(found[start : start + across]) + _BELOW
        if rows and height > _TALLEST:
            break
        rows += 1
    return found[: rows * across]


def _across(found: Sequence[Comparison]) -> int:
    """Number of panels side by side: whole rounds of the data sets, if one fits."""
    fit = max(1, int(TWO_COLUMNS / (_tall(found) + _LEFT)))
    datasets = len({c.at[DATASET] for c in found})
    return min(len(found), fit // datasets * datasets or fit)


def _tall(found: Sequence[Comparison]) -> float:
    return _SIDE * max(len(c.numbers) - 1 for c in found)


def _above(found: Sequence[Comparison]) -> float:
    return 0.06 + 0.11 * max(map(len, _titles(found)))


def _figure(found: Sequence[Comparison]) -> Figure:
    across, above = _across(found), _above(found)
    panel = _tall(found) + _LEFT
    tall = [_tall(found[i : i + across]) for i in range(0, len(found), across)]
    width, height = min(TWO_COLUMNS, across * panel), sum(tall) + len(tall) * (above + _BELOW)
    # Placed by hand: squares of one size, and titles that begin where the row names do.
    figure = Figure(figsize=(width, height))
    top = height
    for k, (comparison, title) in enumerate(zip(found, _titles(found), strict=True)):
        row, column = divmod(k, across)
        if k and column == 0:
            top -= above + tall[row - 1] + _BELOW
        left, size = column * panel, _tall([comparison])
        figure.text((left + 0.03) / width, (top - 0.03) / height, "\n".join(title), va="top",
                    fontsize=6.5, fontweight="bold")  # fmt: skip
        x, y = left + _LEFT - 0.05, top - above - size
        ax = figure.add_axes((x / width, y / height, size / width, size / height))
        _panel(ax, comparison)
    return figure


def _titles(found: Sequence[Comparison]) -> list[list[str]]:
    """Titles: the data set, and those other coordinates that differ between panels."""
    names = dict.fromkeys(name for c in found for name in c.at)
    varying = [n for n in names if n == DATASET or len({c.at.get(n) for c in found}) > 1]
    return [[short(c.at[n], 17) for n in varying if c.at.get(n)] or ["all"] for c in found]


def _panel(ax: Axes, comparison: Comparison) -> None:
    names = list(comparison.numbers)
    n = len(names) - 1  # the first has no row, the last no column: the lower triangle
    points = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(i + 1):
            pair = comparison.pair(names[i + 1], names[j])
            points[i, j] = 100 * pair.difference
            if not np.isnan(points[i, j]):
                digits = 1 if abs(points[i, j]) < 99.95 else 0  # three in all fit into a square
                text = signed(float(points[i, j]), digits)
                ax.text(
                    j, i, text, ha="center", va="center", fontsize=5.5,
                    fontweight="bold" if pair.differ else "normal",
                    color="#000000" if pair.differ else "#555555",
                )  # fmt: skip
            if pair.differ:
                ax.add_patch(Rectangle((j - 0.45, i - 0.45), 0.9, 0.9, fill=False, color="#222222"))
    if not describe(comparison.metric).higher_is_better:
        points = -points
    bound = 2 * float(np.nanmax(np.abs(points), initial=1e-9))  # pale, so that text is readable
    ax.imshow(points, cmap=_BETTER_IS_BLUE, vmin=-bound, vmax=bound)
    ax.set_xticks(range(n), [short(name, 13) for name in names[:-1]], rotation=45,
                  ha="right", rotation_mode="anchor", fontsize=6)  # fmt: skip
    ax.set_yticks(range(n), [short(name, 13) for name in names[1:]], fontsize=6)
    ax.tick_params(length=0, pad=1.5)
    ax.spines[:].set_visible(False)
