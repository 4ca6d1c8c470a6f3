"""Figures of a classification, each as the bytes of a PNG."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.drawing.style import COLOURS, GREY, LINES, png, short

_TOGETHER = 6
"""Most curves in one panel."""

_ACROSS = 5


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
            ax.annotate(
                f"{100 * share[i, j]:.0f}%", (j, i), (0, -7), color=colour, fontsize=6, **centred
            )
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


class _Curve(NamedTuple):
    """A curve of one class.

    Attributes:
      name: class.
      value: metric that the curve belongs to.
      x, y: points.
      base: line of a classifier without skill, from the left to the right edge.
    """

    name: str
    value: float
    x: np.ndarray
    y: np.ndarray
    base: tuple[float, float]


@png
def roc(
    evaluation: Evaluation, labels: np.ndarray, probabilities: Float[np.ndarray, "n k"]
) -> Figure:
    """ROC curve of each class against the rest, or of class 1 for a binary task.

    Args:
      evaluation: the AUROCs of the legend; classes whose AUROC is undefined have no curve.
      labels: class index `[n]`, or 0/1 `[n, k]` for a multi-label task, NaN where not known.
      probabilities: probability of each class.
    """
    from sklearn.metrics import roc_curve  # slow to import, and needed here alone

    curves = []
    for name, truth, scores in _defined(evaluation, labels, probabilities):
        false_alarms, found, _ = roc_curve(truth, scores)
        area = evaluation.per_class[name]["roc_auc"]
        curves.append(_Curve(name, area, false_alarms, found, (0, 1)))
    return _drawn(curves, "AUROC", "1 \N{MINUS SIGN} specificity", "Sensitivity", "default")


@png
def precision_recall(
    evaluation: Evaluation, labels: np.ndarray, probabilities: Float[np.ndarray, "n k"]
) -> Figure:
    """Precision against recall of the classes that `roc` shows; dotted: their prevalence.

    Args:
      evaluation: AUROCs, by which classes without a curve are known.
      labels: class index `[n]`, or 0/1 `[n, k]` for a multi-label task, NaN where not known.
      probabilities: probability of each class.
    """
    from sklearn.metrics import precision_recall_curve  # slow to import, and needed here alone

    curves = []
    for name, truth, scores in _defined(evaluation, labels, probabilities):
        precision, recall, _ = precision_recall_curve(truth, scores)
        value, share = evaluation.per_class[name]["average_precision"], float(truth.mean())
        curves.append(_Curve(name, value, recall[::-1], precision[::-1], (share, share)))
    return _drawn(curves, "Average precision", "Recall", "Precision", "steps-pre")


def _defined(
    evaluation: Evaluation, labels: np.ndarray, probabilities: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, truth and scores of each class with a curve; of two classes the second."""
    k = len(evaluation.classes)
    for c in range(1, 2) if k == 2 and labels.ndim == 1 else range(k):
        name = evaluation.classes[c]
        if not np.isnan(evaluation.per_class[name]["roc_auc"]):
            truth = labels[:, c] if labels.ndim > 1 else labels == c
            known = ~np.isnan(truth)
            yield name, truth[known], probabilities[known, c]


def _drawn(curves: Sequence[_Curve], metric: str, x: str, y: str, style: str) -> Figure:
    """Draw curves in one panel, or in one each where there are many."""
    many = len(curves) > _TOGETHER
    across = _ACROSS if many else 1
    down = -(-len(curves) // across) if many else 1
    side = 1.6 if many else 3.6
    size = (side * across, 1.2 * side * down if many else side)
    figure = Figure(figsize=size, layout="constrained" if many else None)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in axes[len(curves) :] if many else ():
        ax.set_visible(False)
    for c, curve in enumerate(curves):
        ax = axes[c] if many else axes[0]
        look: dict[str, Any] = {
            "color": COLOURS[0 if many else c % len(COLOURS)],
            "linestyle": LINES[0 if many else c // len(COLOURS) % len(LINES)],
        }
        chance = {"color": GREY} if curve.base == (0, 1) else look
        ax.plot((0, 1), curve.base, **{**chance, "linewidth": 0.8, "linestyle": ":"})
        label = f"{curve.value:.3f}  {short(curve.name)}"
        ax.plot(curve.x, curve.y, label=label, linewidth=1.4, drawstyle=style, **look)
        if many:
            ax.set_title(f"{short(curve.name, 18)}\n{curve.value:.3f}", fontsize=7)
    ticks = [0, 0.5, 1] if many else [0, 0.25, 0.5, 0.75, 1]
    axes[0].set(xlim=(-0.02, 1.02), xticks=ticks, ylim=(-0.02, 1.02), yticks=ticks)
    for ax in axes:
        ax.set_aspect("equal")
    if many:
        figure.suptitle(metric, fontsize=8)
        figure.supxlabel(x, fontsize=8)
        figure.supylabel(y, fontsize=8)
        return figure
    axes[0].set(xlabel=x, ylabel=y)
    if curves:
        axes[0].legend(
            title=metric, alignment="left", handlelength=1.6, labelspacing=0.35, loc="best"
        )
    return figure
