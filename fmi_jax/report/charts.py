"""Figures of a run, each as the bytes of a PNG: its training, and the charts of its findings."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from PIL import Image

from fmi_jax.artifacts.charts import (
    Chart,
    Curves,
    Lines,
    Matrix,
    Outlines,
    Overlays,
    Panel,
    Ratios,
)
from fmi_jax.artifacts.history import Series
from fmi_jax.drawing.style import (
    BLUE,
    COLOURS,
    GREY,
    VERMILION,
    class_colour,
    colour_bar,
    heat_map,
    png,
    short,
)

_NUMBERED = 8  # rows and columns up to which every cell carries its value
_PART = "transformer "  # how the layers of a stacked transformer begin
TRUE_COLOUR = (0, 230, 230)
PREDICTED_COLOUR = (255, 200, 0)
"""Colours of the outlines: cyan and amber, told apart with any colour vision."""

_LEAST_SIDE = 192  # pixels of a drawn image, so that two outlines side by side can be seen


@png
def draw_chart(chart: Chart) -> Figure:
    """Draw a chart of any kind."""
    if isinstance(chart, Ratios):
        return _ratios(chart)
    if isinstance(chart, Outlines):
        return _outlines(chart)
    if isinstance(chart, Overlays):
        return _overlays(chart)
    if isinstance(chart, Curves):
        return _courses(chart)
    if isinstance(chart, Lines):
        return _lines(chart)
    return _names(chart) if chart.titles is None else _layers(chart, *chart.titles)


def _layers(matrix: Matrix, first: str, second: str) -> Figure:
    """Layers of two networks; depth grows to the right and upwards."""
    n, m = matrix.values.shape
    cell = 0.42 if max(n, m) <= _NUMBERED else 0.2 if max(n, m) <= 16 else 0.14
    figure = Figure(figsize=(1.8 + cell * m, 1.0 + cell * n))
    ax = figure.subplots()
    _heat(figure, ax, matrix)
    ax.invert_yaxis()
    _depth(ax, matrix.columns, horizontal=True)
    _depth(ax, matrix.rows, horizontal=False)
    wide = 14 + int(14 * cell * max(n, m))  # characters beside or below the cells
    ax.set_xlabel(textwrap.fill(f"Layer of {second}", wide))
    ax.set_ylabel(textwrap.fill(f"Layer of {first}", wide))
    return figure


def _names(matrix: Matrix) -> Figure:
    n, m = matrix.values.shape
    figure = Figure(figsize=(2.2 + 0.42 * m, 1.2 + 0.42 * n))
    ax = figure.subplots()
    _heat(figure, ax, matrix)
    rows, columns = ([short(name, 32) for name in side] for side in (matrix.rows, matrix.columns))
    ax.set_xticks(range(m), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), rows)
    return figure


def _heat(figure: Figure, ax: Axes, matrix: Matrix) -> None:
    image = heat_map(ax, matrix.values, numbers=_NUMBERED, interpolation="nearest")
    colour_bar(figure, image, matrix.unit, ax=ax, fraction=0.046, pad=0.04)


def _depth(ax: Axes, names: Sequence[str], *, horizontal: bool) -> None:
    """Ticks with the numbers of the blocks; the parts of a stacked network are set apart."""
    every = 1 if len(names) <= 16 else 2
    plain = [name.removeprefix(_PART) for name in names]
    ticks = [i for i, name in enumerate(plain) if _shown(name, every)]
    labels = [plain[i].removeprefix("block ").replace("embedding", "in") for i in ticks]
    axis, line = (ax.xaxis, ax.axvline) if horizontal else (ax.yaxis, ax.axhline)
    axis.set_ticks(ticks, labels, fontsize=7)
    parts = [(k, len(list(g))) for k, g in groupby(names, lambda name: name.startswith(_PART))]
    if len(parts) == 1:
        return
    start = 0
    for stacked, count in parts:
        if start:
            line(start - 0.5, color="white", linewidth=1.5)
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
    axis.labelpad = 18


def _shown(name: str, every: int) -> bool:
    number = name.removeprefix("block ")
    return not number.isdecimal() or int(number) % every == every - 1


def _ratios(ratios: Ratios) -> Figure:
    rows, across = ratios.rows, len(ratios.panels)
    figure = Figure(figsize=(3.7 * across, 0.9 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots(1, across, sharey=True, squeeze=False)[0]
    where = f", relative to {short(ratios.reference)}"
    for ax, panel, colour in zip(axes, ratios.panels, COLOURS, strict=False):
        _panel(ax, panel, colour)
        ax.set_xlabel(panel.title + where)
        where = ", relative"  # said once
    axes[0].set_yticks(range(len(rows)), [short(name, 32) for name in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _panel(ax: Axes, panel: Panel, colour: str) -> None:
    """Median ratios as points with lowest and highest, on a log scale: twice as fast and half
    as fast are equally far from 1."""
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    for i, ((low, median, high), value) in enumerate(zip(panel.spreads, panel.values, strict=True)):
        ax.plot([low, high], [i, i], color=colour, linewidth=1.2)
        ax.plot(median, i, "o", color=colour, markersize=4)
        ax.annotate(value, (1, i), (4, 0), va="center", fontsize=7,
                    xycoords=ax.get_yaxis_transform(), textcoords="offset points",
                    color="#444444")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(min(0.7, panel.spreads.min() / 1.15), max(1.45, panel.spreads.max() * 1.15))
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)


def _outlines(outlines: Outlines) -> Figure:
    across = min(4, len(outlines.names))
    down = -(-len(outlines.names) // across)
    figure = Figure(figsize=(1.9 * across, 2.1 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    drawn = zip(outlines.names, outlines.images, outlines.true, outlines.predicted, strict=True)
    for ax, (name, image, true, predicted) in zip(axes, drawn, strict=False):
        ax.imshow(outlined(image, true, predicted), interpolation="nearest")
        ax.set_title(short(name, 24), fontsize=7)
    return figure


def outlined(
    image: UInt8[np.ndarray, "h w c"],
    true: Bool[np.ndarray, "h w k"],
    predicted: Bool[np.ndarray, "h w k"],
) -> Image.Image:
    """Draw the outlines of every foreground class over an image, enlarged if it is small.

    Where both run along the same pixel, every other pixel shows the true one.

    Args:
      image: pixels, one channel or three.
      true, predicted: pixels of each foreground class.
    """
    times = -(-_LEAST_SIDE // min(image.shape[:2]))
    image, true, predicted = (
        x.repeat(times, axis=0).repeat(times, axis=1) for x in (image, true, predicted)
    )
    pixels = np.repeat(image, 3 // image.shape[-1], axis=-1)
    of_true, of_predicted = outline(true), outline(predicted)
    rows, columns = np.indices(of_true.shape)
    pixels[of_predicted] = PREDICTED_COLOUR
    pixels[of_true & ~(of_predicted & ((rows + columns) % 2 == 1))] = TRUE_COLOUR
    return Image.fromarray(pixels)


def palette(num_classes: int) -> list[int]:
    """List red, green and blue of each class of a map, from black for the background."""
    return [0, 0, 0, *(part for c in range(num_classes - 1) for part in class_colour(c))]


def outline(masks: Bool[np.ndarray, "h w k"]) -> Bool[np.ndarray, "h w"]:
    """Find the pixels of any mask that are beside a pixel outside of it, or at the image's edge."""
    padded = np.pad(masks, ((1, 1), (1, 1), (0, 0)))
    beside = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    return (masks & ~np.logical_and.reduce(beside)).any(axis=-1)


def _overlays(overlays: Overlays) -> Figure:
    down, across = len(overlays.names), 1 + len(overlays.maps)
    figure = Figure(figsize=(1.3 * across, 1.45 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for ax in axes.ravel():
        ax.axis("off")
    for i, name in enumerate(overlays.names):
        pixels = np.repeat(overlays.images[i], 3 // overlays.images.shape[-1], axis=-1)
        axes[i, 0].imshow(pixels, interpolation="nearest")
        axes[i, 0].set_title(textwrap.fill(short(name, 44), 22), fontsize=6)
        for ax, (title, values) in zip(axes[i, 1:], overlays.maps.items(), strict=True):
            ax.imshow(pixels.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
            shown = 0.7 * values[i].clip(0, 1)  # the image shows through where a map is low
            ax.imshow(values[i], cmap="plasma", vmin=0, vmax=1, alpha=shown)
            if i == 0:
                ax.set_title(textwrap.fill(title, 22), fontsize=6)
        if overlays.masks is not None and overlays.masks[i].any():
            for ax in axes[i]:
                _contour(ax, overlays.masks[i])
    return figure


def _contour(ax: Axes, mask: Bool[np.ndarray, "h w"]) -> None:
    """Draw a thin line around a mask over an image that is shown."""
    height, width = mask.shape
    padded = np.pad(mask, 1).astype(float)  # closes the line at the edge of the image
    ax.contour(
        np.arange(-1, width + 1),
        np.arange(-1, height + 1),
        padded,
        levels=[0.5],
        colors=[np.divide(TRUE_COLOUR, 255)],
        linewidths=0.6,
    )
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _courses(curves: Curves) -> Figure:
    count = len(curves.panels)
    figure = Figure(figsize=(6.4, 1.3 * count + 0.4), layout="constrained")
    axes = figure.subplots(count, sharex=True, squeeze=False)[:, 0]
    for ax, (name, (steps, values)) in zip(axes, curves.panels.items(), strict=True):
        ax.plot(steps, values, color=COLOURS[0], linewidth=1.2)
        ax.set_ylabel(textwrap.fill(name, 18))
        ax.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes[-1].set_xlabel("Optimizer step")
    figure.align_ylabels(axes)
    return figure


def _lines(chart: Lines) -> Figure:
    figure = Figure(figsize=(3.1 * len(chart.panels), 2.9), layout="constrained")
    axes = figure.subplots(1, len(chart.panels), sharey=True, squeeze=False)[0]
    for ax, (title, lines) in zip(axes, chart.panels.items(), strict=True):
        for colour, (name, rows) in zip(COLOURS, lines.items(), strict=False):
            share = np.linspace(0, 1, rows.shape[1])
            ax.plot(share, rows[0], color=colour, linewidth=1.3, label=name)
            for rival in rows[1:]:
                ax.plot(share, rival, color=colour, linewidth=0.9, linestyle=":")
        ax.set(title=title, xlabel=chart.x, xlim=(0, 1), ylim=(0, 1))
        ax.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes[0].set_ylabel(chart.y)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    return figure


@png
def curves(history: Mapping[str, Series], label: str, metric: str, best_step: int) -> Figure:
    """Loss, validation metric and learning rate against optimizer steps.

    Args:
      history: "train/loss", "val/loss", "val/<metric>" and "train/learning_rate"; a panel
        without data is left out.
      label: metric's name in tables.
      metric: name of the one that selected the best checkpoint.
      best_step: step of the best checkpoint, marked.
    """
    panels = [
        (draw, height)
        for names, draw, height in (
            (("train/loss", "val/loss"), _draw_loss, 2.0),
            (
                (f"val/{metric}",),
                functools.partial(_draw_metric, metric=metric, label=label, best_step=best_step),
                2.0,
            ),
            (("train/learning_rate",), _draw_learning_rate, 1.0),
        )
        if any(name in history for name in names)
    ]
    heights = [height for _, height in panels]
    figure = Figure(figsize=(6.4, 0.75 * sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (draw, _) in zip(axes, panels, strict=True):
        draw(ax, history)
        ax.grid(axis="y", color="#E6E6E6", linewidth=0.6)
        ax.set_axisbelow(True)
    last = max(steps[-1] for steps, _ in history.values())
    axes[-1].set(xlabel="Optimizer step", xlim=(0, last * 1.01))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    figure.align_ylabels(axes)
    return figure


def _draw_loss(ax: Axes, history: Mapping[str, Series]) -> None:
    ends = {}
    if "train/loss" in history:
        steps, loss = history["train/loss"]
        width = 1 + 2 * (len(loss) // 80)  # running mean over about a fortieth of the run
        padded = np.pad(loss, width // 2, mode="edge")
        smooth = np.convolve(padded, np.full(width, 1 / width), mode="valid")
        if width > 1:
            ax.plot(steps, loss, color=BLUE, linewidth=0.6, alpha=0.3)
        ax.plot(steps, smooth, color=BLUE, linewidth=1.4)
        ends["training", BLUE] = smooth[-1]
    if "val/loss" in history:
        steps, loss = history["val/loss"]
        ax.plot(steps, loss, color=VERMILION, linewidth=1.4, marker="o", markersize=3)
        ends["validation", VERMILION] = loss[-1]
    low, high = ax.get_ylim()
    free = low
    for (text, colour), value in sorted(ends.items(), key=lambda end: end[1]):
        at = max(value, free)  # two labels that would overlap are pushed apart
        free = at + 0.13 * (high - low)
        ax.text(1.01, at, text, color=colour, va="center", transform=ax.get_yaxis_transform())
    ax.set_ylabel("Loss")


def _draw_metric(
    ax: Axes, history: Mapping[str, Series], metric: str, label: str, best_step: int
) -> None:
    steps, values = history[f"val/{metric}"]
    ax.plot(steps, values, color=VERMILION, linewidth=1.4, marker="o", markersize=3)
    at = np.flatnonzero(steps == best_step)
    if len(at):
        step, value = steps[at[0]], values[at[0]]
        ax.plot(step, value, "o", markersize=8, markerfacecolor="none", color="#222222")
        late = step > 0.6 * steps[-1]
        ax.annotate(
            f"best: {value:.3f} at step {step:g}", (step, value), xytext=(-9 if late else 9, -13),
            textcoords="offset points", ha="right" if late else "left", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    ax.set_ylabel(textwrap.fill(f"{label} (validation)", 22))
    ax.margins(y=0.2)


def _draw_learning_rate(ax: Axes, history: Mapping[str, Series]) -> None:
    steps, rate = history["train/learning_rate"]
    ax.plot(steps, rate, color=GREY, linewidth=1.4)
    ax.set_ylabel("Learning\nrate")
    ax.set_ylim(0, 1.15 * rate.max() or 1)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    ax.yaxis.set_major_locator(MaxNLocator(3))
