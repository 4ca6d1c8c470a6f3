"""Figures of a similarity analysis, each as the bytes of a PNG."""

import textwrap
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmi_jax.report.style import png, short

_NUMBERED = 8  # rows and columns up to which every cell carries its value
_PART = "transformer "  # how the layers of a stacked transformer begin


@png
def layers(
    cka: Float[np.ndarray, "n m"],
    first_layers: Sequence[str],
    second_layers: Sequence[str],
    first: str,
    second: str,
) -> Figure:
    """Heat map of two networks, layer by layer; depth grows to the right and upwards.

    Args:
      cka: of every layer of the first with every layer of the second; NaN is left grey.
      first_layers, second_layers: their names, as `protocols.cka.layers` gives them.
      first, second: names of the networks.
    """
    n, m = cka.shape
    cell = 0.42 if max(n, m) <= _NUMBERED else 0.2 if max(n, m) <= 16 else 0.14
    figure = Figure(figsize=(1.8 + cell * m, 1.0 + cell * n))
    ax = figure.subplots()
    _heat(figure, ax, cka)
    ax.invert_yaxis()
    _depth(ax, second_layers, horizontal=True)
    _depth(ax, first_layers, horizontal=False)
    wide = 14 + int(14 * cell * max(n, m))  # characters beside or below the cells
    ax.set_xlabel(textwrap.fill(f"Layer of {second}", wide))
    ax.set_ylabel(textwrap.fill(f"Layer of {first}", wide))
    return figure


@png
def last(cka: Float[np.ndarray, "n n"], names: Sequence[str]) -> Figure:
    """Heat map of the last layers of networks."""
    figure = Figure(figsize=(2.2 + 0.42 * len(names), 1.2 + 0.42 * len(names)))
    ax = figure.subplots()
    _heat(figure, ax, cka)
    labels = [short(name, 32) for name in names]
    ax.set_xticks(range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), labels)
    return figure


def _heat(figure: Figure, ax: Axes, cka: Float[np.ndarray, "n m"]) -> None:
    image = ax.imshow(cka, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    ax.set_facecolor("#CFCFCF")  # shows through where it is undefined
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if max(cka.shape) <= _NUMBERED:
        for (i, j), value in np.ndenumerate(cka):
            text = "" if np.isnan(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            colour = "white" if value < 0.6 else "#222222"
            ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
    bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.04, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
    bar.set_label("CKA")


def _depth(ax: Axes, names: Sequence[str], *, horizontal: bool) -> None:
    """Ticks with the numbers of the blocks; the parts of a stacked network are set apart."""
    every = 1 if len(names) <= 16 else 2
    plain = [name.removeprefix(_PART) for name in names]
    ticks = [i for i, name in enumerate(plain) if _shown(name, every)]
    labels = [plain[i].removeprefix("block ").replace("embedding", "in") for i in ticks]
    axis = ax.xaxis if horizontal else ax.yaxis
    axis.set_ticks(ticks, labels, fontsize=7)
    parts = [(k, len(list(g))) for k, g in groupby(names, lambda name: name.startswith(_PART))]
    if len(parts) == 1:
        return
    start = 0
    for stacked, count in parts:
        if start and horizontal:
            ax.axvline(start - 0.5, color="white", linewidth=1.5)
        elif start:
            ax.axhline(start - 0.5, color="white", linewidth=1.5)
        where = start + (count - 1) / 2
        text = "transformer" if stacked else "foundation"
        if horizontal:
            ax.annotate(text, (where, 0), (0, -16), xycoords=ax.get_xaxis_transform(),
                        textcoords="offset points", ha="center", va="top", fontsize=7)  # fmt: skip
        else:
            ax.annotate(text, (0, where), (-16, 0), xycoords=ax.get_yaxis_transform(),
                        textcoords="offset points", ha="right", va="center", rotation=90,
                        fontsize=7)  # fmt: skip
        start += count
    (ax.xaxis if horizontal else ax.yaxis).labelpad = 18


def _shown(name: str, every: int) -> bool:
    number = name.removeprefix("block ")
    return not number.isdecimal() or int(number) % every == every - 1
