"""Figures of a data card, each as the bytes of a PNG."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fmi_jax.data.card.areas import ClassAreas
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.drawing.style import BLUE, GREY, VERMILION, png, short
from fmi_jax.drawing.wording import percent

_MOST_CLASSES = 20  # that a figure shows; of more, the most frequent
_MOST_LINES = 10  # of remarks in the picture
_SPLITS = {"train": (BLUE, "o"), "val": ("#56B4E9", "s"), "test": (VERMILION, "^")}
_BAR = 0.24  # inches from one class to the next


@png
def classes(info: DatasetInfo) -> Figure:
    """Images of each class by split, and whether the splits have the same share of them."""
    figure = Figure(figsize=(7.2, _classes_height(info)), layout="constrained")
    bars, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_classes(bars, shares, info)
    return figure


@png
def sizes(pixels: Int[np.ndarray, "n 2"], size: int) -> Figure:
    """Width against height of the raw images; `size`: the side they were resized to."""
    figure = Figure(figsize=(3.6, 3.4))
    _draw_sizes(figure.subplots(), pixels, size)
    return figure


@png
def areas(found: Sequence[ClassAreas]) -> Figure:
    """Share of its image that each class covers, where it is present, by split."""
    shown, across = found[:_MOST_CLASSES], 3
    down = -(-len(shown) // across)
    figure = Figure(figsize=(7.2, 0.4 + 1.5 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True)
    least = min((each.quartiles()[0] for each in shown if each.quartiles()), default=0.01)
    edges = np.geomspace(min(least, 0.1) * 0.99, 1, 25)
    for ax in axes.ravel()[len(shown) :]:
        ax.axis("off")
    for ax, each in zip(axes.ravel(), shown, strict=False):
        ax.hist(
            [*each.shares.values()],
            bins=list(edges),
            stacked=True,
            color=[_SPLITS[split][0] for split in each.shares],
            label=[*each.shares],
        )
        ax.set(title=short(each.name), xscale="log", xlabel="Share of the image")
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        ax.minorticks_off()
        ax.tick_params(labelbottom=True)
    axes[0, 0].set_ylabel("Images")
    axes[0, 0].legend(fontsize=6, handlelength=1)
    return figure


@png
def overview(
    info: DatasetInfo,
    headline: str,
    banners: Sequence[str],
    pixels: Int[np.ndarray, "n 2"],
    remarks: Sequence[str],
    samples: Mapping[str, Sequence[Image.Image]],
) -> Figure:
    """The whole card in one picture.

    Args:
      info: the data set.
      headline: one line below its name.
      banners: warnings that must not be overlooked.
      pixels: width and height of the raw images.
      remarks: sentences.
      samples: images by class.
    """
    wide, gap = 10.0, 0.06
    few = len(samples) <= 6  # then a row for each class, else two classes side by side
    name_width, name_height = (1.3, 0.0) if few else (0.0, 0.24)
    across, side = (1, 7) if few else (2, 4)
    cell = ((wide - 0.3 * (across - 1)) / across - name_width) / side
    rows = -(-len(samples) // across)
    lines = [line for remark in remarks for line in textwrap.wrap(f"\N{BULLET} {remark}", 150)]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = ["and more on the page beside this picture"]
    charts = max(_classes_height(info), 2.9)
    height = 0.75 + 0.36 * len(banners) + charts + 0.17 * len(lines) + 0.1
    height += rows * (cell + name_height)
    figure = Figure(figsize=(wide, height))
    top = height  # of what is not drawn upon yet, in inches; everything hangs from it

    def axes(x: float, width: float, below: float, tall: float) -> Axes:
        return figure.add_axes(
            (x / wide, (top - below - tall) / height, width / wide, tall / height)
        )

    def text(x: float, below: float, words: str, **style) -> None:
        figure.text(x / wide, (top - below) / height, words, va="top", **style)

    text(0, 0, short(info.name, 60), fontsize=17, fontweight="bold")
    text(0, 0.36, headline, fontsize=9, color=GREY)
    top -= 0.75
    for banner in banners:
        strip = axes(0, wide, 0, 0.28)
        strip.set(xticks=[], yticks=[], facecolor="#FFF4D6")
        strip.spines[:].set_visible(False)
        strip.text(0.01, 0.48, banner, va="center", transform=strip.transAxes)
        top -= 0.36
    if info.classes:
        places = ((1.75, 3.1), (5.0, 1.6))
        bars, shares = (axes(x, width, 0.25, charts - 0.8) for x, width in places)
        shares.sharey(bars)
        _draw_classes(bars, shares, info)
        shares.tick_params(labelleft=False)
    tall = min(charts, 3.4) - 0.8
    left = wide - tall - 0.05 if info.classes else 0.6
    _draw_sizes(axes(left, tall, 0.25, tall), pixels, info.size)
    top -= charts
    for line in lines:
        text(0, 0, line)
        top -= 0.17
    top -= 0.1
    for place, (name, pictures) in enumerate(samples.items()):
        row, column = divmod(place, across)
        left, below = column * (wide + 0.3) / across, row * (cell + name_height)
        label = textwrap.fill(short(name, 60), 18 if few else 60)
        text(left, below + 0.04, label, fontweight="bold")
        if not pictures:
            text(left + name_width, below + name_height + 0.04, "no image in train", color=GREY)
            continue
        # One picture of all of them: axes are what takes the time.
        strip = _side_by_side(pictures[:side], gap / cell)
        ax = axes(left + name_width, cell * len(pictures[:side]), below + name_height, cell - gap)
        ax.imshow(strip, cmap="gray", vmin=0, vmax=255, aspect="auto")
        ax.set_axis_off()
    return figure


def _side_by_side(pictures: Sequence[Image.Image], gap: float) -> np.ndarray:
    """One picture of pictures of one size, each with a white gap (a part of the cell) behind it."""
    shown = [np.asarray(picture) for picture in pictures]
    white = round(shown[0].shape[1] * gap / (1 - gap))
    wide = [(0, 0), (0, white), (0, 0)][: shown[0].ndim]
    return np.hstack([np.pad(pixels, wide, constant_values=255) for pixels in shown])


def _classes_height(info: DatasetInfo) -> float:
    return 0.75 + _BAR * max(min(len(info.classes), _MOST_CLASSES), 3)


def _draw_classes(bars: Axes, shares: Axes, info: DatasetInfo) -> None:
    counts = np.array([info.class_counts[split] for split in _SPLITS])
    shown = np.arange(len(info.classes))
    if len(shown) > _MOST_CLASSES:
        shown = np.sort(np.argsort(-counts.sum(axis=0), kind="stable")[:_MOST_CLASSES])
    y, totals = np.arange(len(shown)), counts.sum(axis=0)[shown]
    known = np.array([info.known_counts(split) for split in _SPLITS])[:, shown]
    everything = np.maximum(known.sum(axis=0), 1)
    left = np.zeros(len(shown))
    for split, row, of in zip(_SPLITS, counts[:, shown], np.maximum(known, 1), strict=True):
        colour, marker = _SPLITS[split]
        bars.barh(y, row, left=left, height=0.7, color=colour, label=split, ec="w", lw=0.5)
        left += row
        shares.plot(row / of, y, marker, color=colour, markersize=4.5, alpha=0.85, clip_on=False)
    for at, total, of in zip(y, totals, everything, strict=True):
        words = f"{round(float(total), 1):,g} " if total < 1e5 else f"{total:,.0f} "
        bars.annotate(
            f"{words}({percent(total / of)})", (total, at), (3, 0),
            textcoords="offset points", va="center", color="#222222", fontsize=7,
        )  # fmt: skip
    title = "Images of each class" if info.label is Label.INDEX else "Images with each class"
    if len(shown) < len(info.classes):
        title += f" (the {_MOST_CLASSES} most frequent of {len(info.classes)})"
    bars.set(
        title=title,
        yticks=y,
        yticklabels=[short(info.classes[c]) for c in shown],
        ylim=(len(shown) - 0.4, -0.6),
        xlim=(0, 1.32 * totals.max()),
    )
    bars.tick_params(axis="y", length=0)
    bars.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    bars.xaxis.set_major_formatter("{x:,.0f}")
    _legend_below(bars, lines=2.4)
    shares.set(title="Share of its split", axisbelow=True, xlim=(0, None))
    shares.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    shares.tick_params(axis="y", length=0)
    shares.xaxis.set_major_locator(MaxNLocator(4))
    shares.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")


def _draw_sizes(ax: Axes, pixels: np.ndarray, size: int) -> None:
    different, counts = np.unique(pixels, axis=0, return_counts=True)
    area = 9 + 200 * counts / counts.sum()
    dense = 0.7 if len(different) < 300 else 0.3
    ax.scatter(*different.T, s=area, color=BLUE, alpha=dense, linewidth=0)
    most = 1.08 * max(pixels.max(), size)
    ax.plot([0, most], [0, most], color="#BBBBBB", linewidth=0.8, zorder=0, label="square")
    square: dict[str, Any] = {"color": VERMILION, "linestyle": "--", "linewidth": 1}
    ax.plot([0, size, size], [size, size, 0], label=f"prepared: {size}", **square)
    ax.set(
        xlim=(0, most), ylim=(0, most), aspect="equal",
        xlabel="Width (pixels)", ylabel="Height (pixels)", title="Sizes of the raw images",
    )  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
        axis.set_major_formatter("{x:,.0f}")
    _legend_below(ax, lines=4.2)


def _legend_below(ax: Axes, lines: float) -> None:
    """The legend in one row, so many lines of text below the axes."""
    ax.legend(
        ncols=3, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=lines, borderpad=0,
        fontsize=7, handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip
