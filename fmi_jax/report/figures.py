"""Figure of a training, as the bytes of a PNG."""

import functools
import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmi_jax.artifacts.history import Series
from fmi_jax.drawing.style import BLUE, GREY, VERMILION, png


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
