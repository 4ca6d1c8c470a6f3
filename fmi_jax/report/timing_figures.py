"""Figures of a timing, each as the bytes of a PNG."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from fmi_jax.report.style import BLUE, GREY, VERMILION, png, short


@png
def relative(rows: Sequence[Mapping[str, Any]], reference: str, batch_size: int) -> Figure:
    """Latency and throughput of every backbone, as multiples of the reference's.

    Args:
      rows: as `protocols.timing` writes them into `result.json`.
      reference: name of the backbone at 1.
      batch_size: images per step where throughput was measured.
    """
    figure = Figure(figsize=(7.4, 0.9 + 0.28 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, rows, "relative_latency", "latency_ms", "{:.1f} ms", BLUE)
    _panel(right, rows, "relative_throughput", "images_per_second", "{:.1f}/s", VERMILION)
    left.set_xlabel(f"Latency of one image, relative to {short(reference)}")
    right.set_xlabel(f"Throughput, {batch_size} images at once, relative")
    left.set_yticks(range(len(rows)), [short(row["backbone"], 32) for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _panel(
    ax: Axes, rows: Sequence[Mapping[str, Any]], ratio: str, value: str, form: str, colour: str
) -> None:
    """Median ratios as points with lowest and highest, on a log scale: twice as fast and half
    as fast are equally far from 1."""
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    for i, row in enumerate(rows):
        spread = row[ratio]
        ax.plot([spread["low"], spread["high"]], [i, i], color=colour, linewidth=1.2)
        ax.plot(spread["median"], i, "o", color=colour, markersize=4)
        ax.annotate(form.format(row[value]["median"]), (1, i), (4, 0), va="center", fontsize=7,
                    xycoords=ax.get_yaxis_transform(), textcoords="offset points",
                    color="#444444")  # fmt: skip
    ax.set_xscale("log")
    ends = [row[ratio][end] for row in rows for end in ("low", "high")]
    ax.set_xlim(min(0.7, min(ends) / 1.15), max(1.45, max(ends) * 1.15))
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
