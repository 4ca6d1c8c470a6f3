"""Figures of a classification, each as the bytes of a PNG."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from fmi_jax.artifacts.result import Evaluation
from fmi_jax.drawing.style import COLOURS, GREY, LINES, png, short


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


@png
def roc(
    evaluation: Evaluation, labels: np.ndarray, probabilities: Float[np.ndarray, "n k"]
) -> Figure:
    """ROC curve of each class against the rest, or of class 1 for a binary task.

    Args:
      evaluation: the AUROCs of the legend; classes whose AUROC is undefined have no curve.
      labels: class index `[n]`, or 0/1 `[n, k]` for a multi-label task.
      probabilities: probability of each class.
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
        where: dict[str, Any] = {"loc": "lower right"}
        if len(curves) > 6:  # beside the axes
            where = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
        ax.legend(title="AUROC", alignment="left", handlelength=1.6, labelspacing=0.35, **where)
    return figure
