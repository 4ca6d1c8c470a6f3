"""Similarity of layers (CKA): small heat maps of settings, and matrices of models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmi_jax.drawing.style import colour_bar, heat_map, short
from fmi_jax.study.report import drawing
from fmi_jax.study.report.drawing import ONE_COLUMN, TWO_COLUMNS, Drawn
from fmi_jax.study.report.table import Table

_PART = "transformer "  # prefix of the layers of a stacked transformer
_BAR: dict[str, Any] = {"fraction": 0.04, "aspect": 30, "shrink": 0.8}  # bar of the colours
_TALLEST = 9.0  # largest height of all panels in inches, to fit on a page


def draw_layers(table: Table) -> Drawn:
    """Draw a panel for each setting: every layer of its network by every layer of the other.

    Args:
      table: table whose rows and columns the panels have; settings without a result show their
        status.
    """
    return drawing.save(
        "layers",
        "CKA of every layer of the trained network (upwards) and every layer of the network before"
        " training (to the right), from the embedding to the last block. White lines: where a"
        " transformer on top begins.",
        lambda: _layers(table),
    )


def _layers(table: Table) -> Figure:
    down, across = len(table.rows), len(table.columns)
    side = min(1.05, (TWO_COLUMNS - 1.3) / across, _TALLEST / down)
    width = min(TWO_COLUMNS, max(ONE_COLUMN, side * across + 1.5))
    figure = Figure(figsize=(width, side * down + 0.4), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    image = None
    for i, row in enumerate(table.rows):
        for j, (ax, dataset, cell) in enumerate(
            zip(axes[i], table.columns, row.cells, strict=True)
        ):
            if cell is not None and "pairs" in cell.number.found:
                image = _panel(ax, cell.number.found["pairs"][0])
            else:
                _empty(ax, "" if cell is None else str(cell.number.status))
            if i == 0:
                ax.set_title(short(dataset, 16))
            if j == 0:
                name = "\n".join(short(part, 14) for part in row.names if part)
                ax.set_ylabel(name, rotation=0, ha="right", va="center", fontweight="bold")
    if image is not None:
        colour_bar(figure, image, "CKA", ax=axes, **_BAR)
    return figure


def _panel(ax: Axes, pair: Mapping[str, Any]) -> Any:
    cka = np.array(pair["cka"], float)
    image = heat_map(ax, cka, numbers=0, origin="lower", aspect="auto")
    ax.set_box_aspect(1)
    for axis, names in zip((ax.yaxis, ax.xaxis), pair["layers"], strict=True):
        parts = [name.startswith(_PART) for name in names]
        axis.set_ticks([0, len(names) - 1], ["in", names[-1].split()[-1]], fontsize=5.5)
        axis.set_tick_params(length=0, pad=1.5)
        if any(parts) and not all(parts):
            line = ax.axhline if axis is ax.yaxis else ax.axvline
            line(parts.index(True) - 0.5, color="white", linewidth=0.8)
    return image


def _empty(ax: Axes, text: str) -> None:
    ax.set(xticks=[], yticks=[])
    ax.set_box_aspect(1)
    ax.spines[:].set_visible(False)
    if text:
        ax.set_facecolor("#F4F4F4")
        ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes,
                fontsize=6, color="#666666")  # fmt: skip


def draw_models(table: Table) -> Drawn:
    """Draw a panel for each data set: the last layers of all networks by one another."""
    return drawing.save("models", "CKA of the last layers of the models.", lambda: _models(table))


def _models(table: Table) -> Figure:
    found = [
        (dataset, values)
        for dataset in table.columns
        for cell in table.column(dataset)
        if "last_layers" in (values := cell.number.found)
    ]
    down, across = drawing.columns(len(found), 2)
    side = 0.26 * max(len(values["networks"]) for _, values in found)
    width = min(TWO_COLUMNS, across * (side + 0.2) + 1.4)
    side = (width - 1.4) / across
    figure, axes = drawing.panels((width, down * (side + 0.8)), down, across, len(found))
    image = None
    for k, (ax, (dataset, values)) in enumerate(zip(axes, found, strict=False)):
        matrix = np.array(values["last_layers"], float)
        image = heat_map(ax, matrix, numbers=10, fontsize=5.5)
        labels = [short(name, 20) for name in values["networks"]]
        ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(labels)), labels if k % across == 0 else [])
        ax.set_title(short(dataset, 30))
    colour_bar(figure, image, "CKA", ax=axes, **_BAR)
    return figure
