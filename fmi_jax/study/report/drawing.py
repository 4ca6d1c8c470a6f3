"""Style of a study's figures, for a journal: drawn once, saved as PNG and as vector PDF.

Widths are those of one and of two columns. Every model has its own combination of colour, marker
and line style, the same in all figures of a study, so that none depends on colour alone.
"""

import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fmi_jax.drawing.style import COLOURS, GREY, png, short

ONE_COLUMN, TWO_COLUMNS = 85 / 25.4, 180 / 25.4
"""Widths in inches: 85 and 180 mm."""

ROW = 0.135
"""Height of a row of dots, in inches."""

GRID = "#E6E6E6"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_PAPER: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # TrueType, as publishers ask for
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.wspace": 0.05,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A finished figure with its files.

    Attributes:
      name: name in its file names, without the study's name and the suffix.
      caption: description of the figure and how to read it.
      png, pdf: contents of the files.
    """

    name: str
    caption: str
    png: bytes
    pdf: bytes

    @property
    def width(self) -> int:
        """Width in CSS pixels at which its text is as large as that of a page."""
        pixels = int.from_bytes(self.png[16:20], "big")  # width field of the PNG header
        return round(0.7 * pixels)


def save(name: str, caption: str, draw: Callable[[], Figure]) -> Drawn:
    """Draw the figure that `draw` returns in the project's style at journal size, and save it."""
    pdf = io.BytesIO()

    @png
    def drawn() -> Figure:
        with matplotlib.rc_context(_PAPER):
            figure = draw()
            figure.draw_without_rendering()  # the layout takes two passes to settle
            nothing = dict.fromkeys(("Creator", "Producer", "CreationDate"))
            figure.savefig(pdf, format="pdf", metadata=nothing)
        return figure

    return Drawn(name=name, caption=caption, png=drawn(), pdf=pdf.getvalue())


@dataclasses.dataclass(frozen=True)
class Look:
    """Colour, marker and line style of one thing, the same in all figures."""

    colour: str
    marker: str
    line: Any


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Give each name a look, in order."""
    colours = (*COLOURS, GREY)
    return {
        name: Look(colours[i % len(colours)], _MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


PLAIN = Look("#222222", "o", "-")
"""Look of what has none of its own."""


def columns(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for `count` panels, at most `most` side by side."""
    across = min(count, most)
    return -(-count // across), across


def panels(
    size: tuple[float, float], down: int, across: int, count: int
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a grid of axes, and list them row by row; those after `count` are hidden.

    Args:
      size: width and height in inches.
      down, across: rows and columns of the grid.
      count: number of panels.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, axes


def row_axis(ax: Axes, rows: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    """Set up a y axis with a line for each row, downwards, under headings that rows share.

    Args:
      ax: axes to set up.
      rows: coordinates of each row; the last names the row, those before it are its heading.

    Returns:
      The y position of each row.
    """
    places: dict[tuple[str, ...], float] = {}
    ticks, labels, headings = [], [], []
    at, above = 0.0, None
    for row in rows:
        if row[:-1] != above and any(row[:-1]):
            at += 0.3 if ticks else 0
            headings.append(len(ticks))
            ticks.append(at)
            labels.append(short(" · ".join(filter(None, row[:-1])), 28))
            at += 1
        above = row[:-1]
        places[row] = at
        ticks.append(at)
        labels.append(short(row[-1] if row else "all", 24))
        at += 1
    ax.set_yticks(ticks, labels)
    for i in headings:
        ax.get_yticklabels()[i].set_fontweight("bold")
    ax.set_ylim(at - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    for place in places.values():
        ax.axhline(place, color=GRID, linewidth=0.5, zorder=0)
    return places


def row_axis_height(rows: Sequence[tuple[str, ...]]) -> float:
    """Height that `row_axis` needs, in inches."""
    blocks = len({row[:-1] for row in rows if any(row[:-1])})
    return ROW * (len(rows) + 1.3 * blocks + 0.5)


def few_ticks(ax: Axes, count: int = 4, *, axis: str = "x") -> None:
    """Draw at most `count` ticks, with few digits."""
    (ax.xaxis if axis == "x" else ax.yaxis).set_major_locator(
        MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    )


def filled(look: Look, inside: str | None = None) -> dict[str, Any]:
    """Style of a filled marker, for our numbers; `inside` is another colour of the inner part."""
    return {
        "marker": look.marker, "markerfacecolor": inside or look.colour,
        "markeredgecolor": look.colour, "markeredgewidth": 0.6, "linestyle": "none",
    }  # fmt: skip


def hollow(look: Look) -> dict[str, Any]:
    """Style of a hollow marker, for published numbers: what is under it stays visible."""
    return {
        "marker": look.marker, "markerfacecolor": "none", "markeredgecolor": "#222222",
        "markeredgewidth": 0.7, "linestyle": "none", "markersize": 5.5,
    }  # fmt: skip


def key(figure: Figure, handles: Sequence[Line2D], across: int) -> None:
    """Add a legend below all panels."""
    lined = any(handle.get_linestyle() != "None" for handle in handles)
    figure.legend(
        handles=list(handles), loc="outside lower center", ncols=min(across, len(handles)),
        handletextpad=0.5, columnspacing=1.3, borderpad=0.1, handlelength=2.4 if lined else 1,
    )  # fmt: skip


def key_of_published(figure: Figure) -> None:
    """Add a legend of filled and hollow markers: our numbers and published ones."""
    ours = Line2D([], [], label="here", **filled(PLAIN))
    key(figure, [ours, Line2D([], [], label="published", **hollow(PLAIN))], 2)
