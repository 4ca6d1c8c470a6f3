"""Cost of training and inference, relative to a reference (Figure 3)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from fmi_jax.drawing.style import GREY, short
from fmi_jax.study.report import drawing
from fmi_jax.study.report.drawing import PLAIN, TWO_COLUMNS, Drawn, Look
from fmi_jax.study.report.relative import Iterations, Latency


def draw(
    trained: Sequence[Iterations],
    timed: Sequence[Latency],
    looks: Mapping[str, Look],
    lines: str,
) -> Drawn:
    """Draw iterations to the best validation score beside the latency of one image.

    Args:
      trained: rows of the left panel; empty: no left panel.
      timed: rows of the right panel; empty: no right panel.
      looks: look of each value of the coordinate `lines`.
      lines: coordinate that a colour stands for.
    """
    parts = []
    if trained:
        parts.append(
            "Left: iterations to the best validation score relative to supervised ImageNet under a"
            " linear head with the backbone treated alike, in the mean over the data sets."
        )
    if timed:
        parts.append(
            f"Latency of one image relative to {timed[0].speed.reference}: median and range over"
            " the rounds of the timing."
        )
    caption = " ".join([*parts, "Logarithmic: twice and half are equally far from 1."])
    return drawing.save("time", caption, lambda: _figure(trained, timed, looks, lines))


def _figure(
    trained: Sequence[Iterations],
    timed: Sequence[Latency],
    looks: Mapping[str, Look],
    lines: str,
) -> Figure:
    rows = [row.row for row in trained]
    names = [latency.row for latency in timed]
    height = max(drawing.row_axis_height(part) for part in (rows, names)) + 0.45
    figure = Figure(figsize=(TWO_COLUMNS, height), layout="constrained")
    axes = figure.subplots(1, bool(rows) + bool(names), squeeze=False)[0]
    if rows:
        ax = axes[0]
        places = drawing.row_axis(ax, rows)
        for row in trained:
            look = looks.get(row.at.get(lines, ""), PLAIN)
            ax.plot(row.relative, places[row.row], **drawing.filled(look))
        _ratios(ax, [row.relative for row in trained])
        ax.set_title("Training")
        ax.set_xlabel("Iterations to the best score, relative")
    if names:
        ax = axes[-1]
        places = drawing.row_axis(ax, names)
        for latency in timed:
            look, y = looks.get(latency.row[1], PLAIN), places[latency.row]
            ax.plot((latency.speed.low, latency.speed.high), (y, y), color=look.colour)
            ax.plot(latency.speed.median, y, **drawing.filled(look))
            ax.annotate(
                f"{latency.speed.milliseconds:.3g} ms", (1, y), (3, 0), va="center", fontsize=6,
                xycoords=ax.get_yaxis_transform(), textcoords="offset points", color="#444444",
            )  # fmt: skip
        _ratios(ax, [end for latency in timed for end in (latency.speed.low, latency.speed.high)])
        ax.set_title("Inference")
        ax.set_xlabel(f"Latency relative to {short(timed[0].speed.reference)}")
    return figure


def _ratios(ax: Axes, values: Sequence[float]) -> None:
    """Set up a logarithmic axis around 1 with numbers at 1, 2 and 5."""
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    ax.set_xlim(min(0.7, min(values) / 1.2), max(1.4, max(values) * 1.2))
    wide = np.log10(max(values) / min(values)) > 2
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
