"""Figures of a run, each as the bytes of a PNG."""

import functools
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmi_jax.artifacts.result import Evaluation
from fmi_jax.drawing.style import BLUE, COLOURS, GREY, LINES, VERMILION, png, short
from fmi_jax.report.history import Series


@png
def confusion(evaluation: Evaluation) -> Figure:
    """Confusion matrix of a binary or multi-class task.

    Colour and percentage are shares of the true class (rows sum to 100%), so that rare classes
    are as readable as frequent ones; the number in each cell counts images.
    """
    counts, k = evaluation.confusion, len(evaluation.classes)
    support = counts.sum(axis=1)
    share = counts / np.maximum(support, 1)[:, None]
    numbered = k <= 20
    side = 1.2 + (0.58 if numbered else 0.25) * max(k, 3)
    figure = Figure(figsize=(side + 0.5, side))
    ax = figure.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(k, k):
        if numbered and counts[i, j]:
            colour = "white" if share[i, j] > 0.55 else "#222222"
            centred: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "textcoords": "offset points",
            }
            ax.annotate(str(counts[i, j]), (j, i), (0, 4), color=colour, **centred)
            percent = f"{100 * share[i, j]:.0f}%"
            ax.annotate(percent, (j, i), (0, -7), color=colour, fontsize=6, **centred)
        elif numbered and support[i]:
            ax.text(j, i, "0", ha="center", va="center", color="#9A9A9A")
        elif not support[i] and j == 0:
            ax.text((k - 1) / 2, i, "no images", ha="center", va="center", color=GREY)
    names = [short(name) for name in evaluation.classes]
    crowded = k > 6 or max(map(len, names)) > 10
    ax.set_xticks(
        range(k), names, rotation=40 if crowded else 0, ha="right" if crowded else "center",
        rotation_mode="anchor" if crowded else None,
    )  # fmt: skip
    ax.set_yticks(range(k), [f"{name}  (n={n})" for name, n in zip(names, support, strict=True)])
    ax.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="Predicted class", ylabel="True class")
    if numbered:
        ax.set_title("Images, and their share of the true class", fontsize=8)
    else:
        bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03, format="{x:.0%}")
        bar.outline.set_visible(False)
        bar.set_label("Share of the true class")
    return figure


@png
def roc(
    evaluation: Evaluation, labels: np.ndarray, probabilities: Float[np.ndarray, "n k"]
) -> Figure:
    """ROC curve of each class against the rest, or of class 1 for a binary task.

    Args:
      evaluation: the AUROCs of the legend; classes whose AUROC is undefined have no curve.
      labels: class index `[n]`, or 0/1 `[n, k]` for a multi-label task.
      probabilities: of each class.
    """
    from sklearn.metrics import roc_curve  # slow to import, and needed here alone

    figure = Figure(figsize=(3.6, 3.6))
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8)
    ax.annotate("chance", (0.16, 0.16), xytext=(2, -3), textcoords="offset points",
                rotation=45, ha="left", va="top", color="#8A8A8A", fontsize=7)  # fmt: skip
    k = len(evaluation.classes)
    curves = range(1, 2) if k == 2 and labels.ndim == 1 else range(k)
    for c in curves:
        name = evaluation.classes[c]
        area = evaluation.per_class[name]["roc_auc"]
        if np.isnan(area):
            continue
        truth = labels[:, c] if labels.ndim > 1 else labels == c
        false_alarms, found, _ = roc_curve(truth, probabilities[:, c])
        ax.plot(
            false_alarms, found, label=f"{area:.3f}  {short(name)}", linewidth=1.4,
            color=COLOURS[c % len(COLOURS)], linestyle=LINES[c // len(COLOURS) % len(LINES)],
        )  # fmt: skip
    ax.set(
        xlabel="1 \N{MINUS SIGN} specificity", xlim=(-0.02, 1.02), xticks=[0, 0.25, 0.5, 0.75, 1],
        ylabel="Sensitivity", ylim=(-0.02, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1], aspect="equal",
    )  # fmt: skip
    if ax.get_legend_handles_labels()[0]:
        inside: dict[str, Any] = {"loc": "lower right"}
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
        where = inside if len(curves) <= 6 else beside
        ax.legend(title="AUROC", alignment="left", handlelength=1.6, labelspacing=0.35, **where)
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
