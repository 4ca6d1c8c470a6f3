"""How every figure looks.

Drawn for print: one typeface, colours that differ for the colour-blind (Okabe and Ito 2008),
no state shared with `pyplot`, and the same bytes for the same numbers.
"""

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#6B6B6B"
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": "#222222",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "$5"
}
_P = ParamSpec("_P")


def png(draw: Callable[_P, Figure]) -> Callable[_P, bytes]:
    """The figure that `draw` returns, in the style above, as the bytes of a PNG."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> bytes:
        with matplotlib.rc_context(_STYLE):
            file = io.BytesIO()
            draw(*args, **kwargs).savefig(
                file,
                format="png",
                dpi=200,
                bbox_inches="tight",
                pad_inches=0.08,
                metadata={"Software": None},
            )
        return file.getvalue()

    return drawn


def heat_map(
    ax: Axes, values: np.ndarray, *, numbers: int, fontsize: float = 6.5, **how: Any
) -> AxesImage:
    """Draw values from 0 to 1 as colours; what is undefined stays grey.

    Args:
      ax: axes to draw into.
      values: values, `[n, m]`.
      numbers: most rows and columns with which every cell carries its value.
      fontsize: size of these values.
      how: more arguments of `imshow`.
    """
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=1, **how)
    ax.set_facecolor("#CFCFCF")  # shows through where it is undefined
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if max(values.shape) <= numbers:
        for (i, j), value in np.ndenumerate(values):
            text = "" if np.isnan(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            colour = "white" if value < 0.6 else "#222222"
            ax.text(j, i, text, ha="center", va="center", fontsize=fontsize, color=colour)
    return image


def colour_bar(figure: Figure, image: Any, label: str, **where: Any) -> None:
    """Add the colours of a `heat_map`; `where` are arguments of `Figure.colorbar`."""
    bar = figure.colorbar(image, ticks=[0, 0.25, 0.5, 0.75, 1], **where)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
    bar.set_label(label)


def class_colour(index: int) -> tuple[int, int, int]:
    """Red, green and blue of a foreground class, from 0 to 255; they repeat after the sixth."""
    red, green, blue = bytes.fromhex(COLOURS[index % (len(COLOURS) - 1)][1:])
    return red, green, blue


def short(name: str, length: int = 24) -> str:
    """`name` on one line of at most `length` characters."""
    line = " ".join(name.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
