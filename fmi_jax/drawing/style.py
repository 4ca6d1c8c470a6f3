"""How every figure looks.

Drawn for print: one typeface, colours that differ for the colour-blind (Okabe and Ito 2008),
no state shared with `pyplot`, and the same bytes for the same numbers.
"""

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure

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


def short(name: str, length: int = 24) -> str:
    """`name` on one line of at most `length` characters."""
    line = " ".join(name.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
